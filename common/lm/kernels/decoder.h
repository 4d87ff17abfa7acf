// A whole decoder of the form of Llama, for few tokens: one parallel region a step.
//
// Between two products stands a barrier and nothing else: no allocation, no dispatch. What is cheap,
// the norms of few rows, every thread does for itself rather than wait for another.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <omp.h>
#include <torch/custom_class.h>

#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "attention.h"
#include "product.h"

namespace outrider {

using at::Tensor;

// out = x / rms(x) * weight
inline void rms_norm(const float* x, const float* weight, float* out, int64_t size, float epsilon) {
  Lanes squares = {};
  int64_t k = 0;
  for (; k + LANES <= size; k += LANES) squares += load(x + k) * load(x + k);
  float total = sum(squares);
  for (; k < size; ++k) total += x[k] * x[k];
  const float scale = 1.f / std::sqrt(total / static_cast<float>(size) + epsilon);
  for (k = 0; k + LANES <= size; k += LANES) store(out + k, load(x + k) * scale * load(weight + k));
  for (; k < size; ++k) out[k] = x[k] * scale * weight[k];
}

// gate = silu(gate) * up
inline void gated(float* gate, const float* up, int64_t size) {
  const Lanes zero = {};
  int64_t k = 0;
  for (; k + LANES <= size; k += LANES) {
    const Lanes x = load(gate + k);
    const Lanes e = exponential(x < zero ? x : -x);
    store(gate + k, x * (x < zero ? e : zero + 1.f) / (1.f + e) * load(up + k));
  }
  for (; k < size; ++k) gate[k] = gate[k] / (1.f + std::exp(-gate[k])) * up[k];
}

// Turns the pairs (d, d + half) of a head by the angles of its position.
inline void rotate(float* head, const float* cosine, const float* sine, int64_t half) {
  for (int64_t d = 0; d < half; ++d) {
    const float first = head[d], second = head[d + half];
    head[d] = first * cosine[d] - second * sine[d];
    head[d + half] = second * cosine[d] + first * sine[d];
  }
}

struct Part {
  int64_t begin, end;
};

// The share of one of `number` threads in `size` rows, whole tiles of four.
inline Part share(int64_t size, int64_t thread, int64_t number) {
  const int64_t tiles = (size + 3) / 4;
  return {std::min(size, tiles * thread / number * 4), std::min(size, tiles * (thread + 1) / number * 4)};
}

struct Linear {
  Tensor weight;
  std::optional<Tensor> bias;
  int64_t outer = 0, inner = 0;

  // Writes the columns of `part` of y, whose rows are `stride` apart.
  void operator()(const float* x, float* y, int64_t tokens, int64_t stride, Part part) const {
    product(x, weight.const_data_ptr<float>(), bias ? bias->const_data_ptr<float>() : nullptr, y,
            tokens, inner, stride, part.begin, part.end);
  }
};

struct Layer {
  Tensor attention_norm, mlp_norm;
  std::optional<Tensor> query_norm, key_norm;
  Linear query, key, value, output, gate, up, down;
  Call call;
};

class Decoder : public torch::CustomClassHolder {
 public:
  // Takes the embedding, the last norm, the head and a layer's weights in the order read here;
  // heads, key heads and the size of one; epsilon and the factor of cosine and sine; windows (0:
  // none) and scales of scores, one a layer; the frequencies of rotation.
  Decoder(const c10::List<std::optional<Tensor>>& weights, const std::vector<int64_t>& shape,
          const std::vector<double>& numbers, const std::vector<int64_t>& windows,
          const std::vector<double>& scales, const std::vector<double>& frequencies)
      : heads_(shape.at(0)), kv_heads_(shape.at(1)), size_(shape.at(2)),
        epsilon_(static_cast<float>(numbers.at(0))), amplitude_(static_cast<float>(numbers.at(1))),
        frequencies_(frequencies.begin(), frequencies.end()) {
    size_t next = 0;
    const auto maybe = [&]() -> std::optional<Tensor> {
      const std::optional<Tensor> given = weights.get(next++);
      TORCH_CHECK(!given || (given->scalar_type() == at::kFloat && given->is_contiguous()),
                  "weight ", next - 1, " is not dense float32");
      return given;
    };
    const auto tensor = [&] { return maybe().value(); };
    const auto linear = [&] {
      Linear made{tensor(), maybe()};
      made.outer = made.weight.size(0), made.inner = made.weight.size(1);
      return made;
    };
    embedding_ = tensor();
    norm_ = tensor();
    head_ = linear();
    for (size_t i = 0; i < windows.size(); ++i) {
      Layer layer;
      layer.attention_norm = tensor(), layer.mlp_norm = tensor();
      layer.query_norm = maybe(), layer.key_norm = maybe();
      for (Linear* made : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                           &layer.up, &layer.down})
        *made = linear();
      layer.call = {scales.at(i), windows[i], 0.0};
      layers_.push_back(std::move(layer));
    }
  }

  // tokens [T]; places, keys and values as of begin_step; returns the logits of `rows`,
  // [len(rows), vocabulary].
  Tensor run(const std::vector<int64_t>& tokens, const std::vector<int64_t>& places,
             const std::vector<Tensor>& keys, const std::vector<Tensor>& values,
             const std::vector<int64_t>& rows) const {
    const Step step(tokens, places, keys, values, rows);
    TORCH_CHECK(layers_.size() == keys.size(), "keys are not a layer's each");
    for (const int64_t token : tokens)
      TORCH_CHECK(0 <= token && token < embedding_.size(0), "no token ", token);
    Tensor output = at::empty({static_cast<int64_t>(rows.size()), head_.outer}, embedding_.options());
    const int threads = at::get_num_threads();
    const Workspace work(*this, tokens.size(), rows.size(), threads);
    for (const Span& span : step.spans)
      for (int64_t row = span.start; row < span.stop; ++row)
        angles(span.position + row - span.start, work.cosine + row * size_ / 2, work.sine + row * size_ / 2);
    float* const logits = output.mutable_data_ptr<float>();
    std::atomic<bool> out_of_memory = false;  // nothing may be thrown from among the threads
#pragma omp parallel num_threads(threads) if (threads > 1)
    forward(step, work, logits, omp_get_thread_num(), omp_get_num_threads(), out_of_memory);
    if (out_of_memory) throw std::bad_alloc();
    return output;
  }

 private:
  struct Block {
    const Span& span;
    int64_t begin, end;  // of its tokens
  };

  struct Step {
    Step(const std::vector<int64_t>& tokens, const std::vector<int64_t>& places,
         const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const std::vector<int64_t>& rows)
        : tokens(tokens), rows(rows), keys(keys), values(values), spans(read_spans(places)) {
      for (const Span& span : spans)
        for (int64_t begin = 0, count = span.stop - span.start; begin < count; begin += QUERIES)
          blocks.push_back({span, begin, std::min(count, begin + QUERIES)});
    }
    const std::vector<int64_t>& tokens;
    const std::vector<int64_t>& rows;
    const std::vector<Tensor>& keys;
    const std::vector<Tensor>& values;
    std::vector<Span> spans;
    std::vector<Block> blocks;
  };

  // What the threads of a step share.
  struct Workspace {
    Workspace(const Decoder& of, int64_t tokens, int64_t rows, int64_t threads)
        : normed_size(whole(std::max(tokens, rows) * of.embedding_.size(1))) {
      const int64_t hidden = of.embedding_.size(1), inner = of.layers_.front().gate.outer;
      const int64_t attended = of.heads_ * of.size_, held = of.kv_heads_ * of.size_;
      const int64_t sizes[] = {hidden, hidden, attended, held, held, attended, inner, inner,
                               of.size_ / 2, of.size_ / 2};
      float** const parts[] = {&x, &added, &query, &key, &value, &attention, &gate, &up, &cosine, &sine};
      int64_t total = threads * normed_size;
      for (const int64_t size : sizes) total += whole(size * tokens);
      memory.reset(static_cast<float*>(operator new[](total * sizeof(float), LINE)));
      float* at = memory.get();
      for (size_t i = 0; i < std::size(sizes); at += whole(sizes[i++] * tokens)) *parts[i] = at;
      normed = at;
    }
    // Each part begins where a line of the cache does, or most loads would touch two.
    static constexpr std::align_val_t LINE{64};
    static int64_t whole(int64_t size) { return (size + 15) / 16 * 16; }
    struct Free {
      void operator()(float* memory) const { operator delete[](memory, LINE); }
    };
    int64_t normed_size;
    std::unique_ptr<float[], Free> memory;
    float *x, *added, *query, *key, *value, *attention, *gate, *up, *cosine, *sine;
    float* normed;  // one a thread
  };

  void angles(int64_t position, float* cosine, float* sine) const {
    for (size_t d = 0; d < frequencies_.size(); ++d) {
      const float angle = static_cast<float>(position) * frequencies_[d];
      cosine[d] = std::cos(angle) * amplitude_;
      sine[d] = std::sin(angle) * amplitude_;
    }
  }

  void forward(const Step& step, const Workspace& work, float* logits, int64_t thread, int64_t number,
               std::atomic<bool>& out_of_memory) const {
    const int64_t tokens = step.tokens.size(), hidden = embedding_.size(1);
    float* const normed = work.normed + thread * work.normed_size;
    const auto part = [&](int64_t size) { return share(size, thread, number); };
    const auto norm = [&](const Tensor& weight) {
      for (int64_t t = 0; t < tokens; ++t)
        rms_norm(work.x + t * hidden, weight.const_data_ptr<float>(), normed + t * hidden, hidden, epsilon_);
    };
    // x += linear(from), each thread its columns.
    const auto add = [&](const Linear& linear, const float* from) {
      const Part mine = part(hidden);
      linear(from, work.added, tokens, hidden, mine);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t d = mine.begin; d < mine.end; ++d) work.x[t * hidden + d] += work.added[t * hidden + d];
    };
    const Part columns = part(hidden);
    for (int64_t t = 0; t < tokens; ++t)
      std::copy_n(embedding_.const_data_ptr<float>() + step.tokens[t] * hidden + columns.begin,
                  columns.end - columns.begin, work.x + t * hidden + columns.begin);
#pragma omp barrier
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      norm(layer.attention_norm);
      for (const auto& [linear, to] : {std::pair{&layer.query, work.query}, {&layer.key, work.key}, {&layer.value, work.value}})
        (*linear)(normed, to, tokens, linear->outer, part(linear->outer));
#pragma omp barrier
      const int64_t spans = step.spans.size(), blocks = step.blocks.size();
      for (int64_t task = thread; task < spans * kv_heads_; task += number)
        hold(step, work, i, step.spans[task / kv_heads_], task % kv_heads_);
      if (blocks > spans) {  // else each thread needs but what it held itself
#pragma omp barrier
      }
      try {
        for (int64_t task = thread; task < blocks * kv_heads_; task += number)
          attend(step, work, i, step.blocks[task / kv_heads_], task % kv_heads_);
      } catch (const std::bad_alloc&) {
        out_of_memory = true;
      }
#pragma omp barrier
      add(layer.output, work.attention);
#pragma omp barrier
      norm(layer.mlp_norm);
      const int64_t inner = layer.gate.outer;
      const Part mine = part(inner);
      layer.gate(normed, work.gate, tokens, inner, mine);
      layer.up(normed, work.up, tokens, inner, mine);
      for (int64_t t = 0; t < tokens; ++t)
        gated(work.gate + t * inner + mine.begin, work.up + t * inner + mine.begin, mine.end - mine.begin);
#pragma omp barrier
      add(layer.down, work.gate);
#pragma omp barrier
    }
    const int64_t rows = step.rows.size();
    for (int64_t r = 0; r < rows; ++r)
      rms_norm(work.x + step.rows[r] * hidden, norm_.const_data_ptr<float>(), normed + r * hidden, hidden, epsilon_);
    if (rows) head_(normed, logits, rows, head_.outer, part(head_.outer));
  }

  // One key head of one span: its keys' rotation and place in the cache, and its values'.
  void hold(const Step& step, const Workspace& work, int64_t index, const Span& span, int64_t head) const {
    float* const keys = of_head(step.keys[index], head);
    float* const values = of_head(step.values[index], head);
    int64_t row = span.start;
    span.pieces(span.position, span.position + span.stop - span.start, [&](int64_t, int64_t place, int64_t tokens) {
      for (const int64_t end = place + tokens; place < end; ++place, ++row) {
        const int64_t from = (row * kv_heads_ + head) * size_;
        turn(work, work.key + from, layers_[index].key_norm, row);
        std::copy_n(work.key + from, size_, keys + place * size_);
        std::copy_n(work.value + from, size_, values + place * size_);
      }
    });
  }

  // All queries of a block that share one key head.
  void attend(const Step& step, const Workspace& work, int64_t index, const Block& block, int64_t head) const {
    const Layer& layer = layers_[index];
    const int64_t groups = heads_ / kv_heads_;
    for (int64_t row = block.span.start + block.begin; row < block.span.start + block.end; ++row)
      for (int64_t g = head * groups; g < (head + 1) * groups; ++g)
        turn(work, work.query + (row * heads_ + g) * size_, layer.query_norm, row);
    const Queries queries{work.query, size_, heads_ * size_};
    attend_head(queries, block.span, block.begin, block.end, of_head(step.keys[index], head),
                of_head(step.values[index], head), size_, size_, head, groups, layer.call, work.attention, heads_);
  }

  void turn(const Workspace& work, float* vector, const std::optional<Tensor>& weight, int64_t row) const {
    if (weight) rms_norm(vector, weight->const_data_ptr<float>(), vector, size_, epsilon_);
    rotate(vector, work.cosine + row * size_ / 2, work.sine + row * size_ / 2, size_ / 2);
  }

  static float* of_head(const Tensor& held, int64_t head) {
    return held.mutable_data_ptr<float>() + head * held.stride(0);
  }

  int64_t heads_, kv_heads_, size_;
  float epsilon_, amplitude_;
  std::vector<float> frequencies_;
  Tensor embedding_, norm_;
  Linear head_;
  std::vector<Layer> layers_;
};

}  // namespace outrider
