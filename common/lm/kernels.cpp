// Products of few tokens with large weights, and ragged attention over the key/value cache, in
// float32 on the CPU (see native.py). A weight, a key and a value are read once a step, where they
// lie: nothing is packed, padded or copied.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace {

using at::Tensor;

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr int MOST_COLUMNS = 6;  // accumulators must fit the registers, four rows of these
#else
constexpr int64_t LANES = 8;
constexpr int MOST_COLUMNS = 3;
#endif
using Lanes = float __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float)), may_alias));
using Four = float __attribute__((vector_size(16)));
using Integers = int32_t __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, Lanes lanes) { *reinterpret_cast<Lanes*>(to) = lanes; }

// Adds up by halves: a chain of additions would cost more than a short row does.
inline float sum(const Lanes& lanes) {
  Four four[LANES / 4];
  std::memcpy(four, &lanes, sizeof lanes);
  for (int64_t half = LANES / 8; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) four[i] += four[i + half];
  return (four[0][0] + four[0][1]) + (four[0][2] + four[0][3]);
}

// ---- y = x W^T + b ------------------------------------------------------------------------------

constexpr int64_t MOST_TOKENS = 16;  // beyond, BLAS is faster, which packs the weight first
constexpr int64_t FAR = 4096;  // numbers ahead that memory is asked for
constexpr int64_t PARALLEL_WORK = 1 << 15;  // multiplications worth a second thread

// y[t * outer + r] for ROWS rows of w and TOKENS rows of x. Each sum runs over the same lanes in the
// same order whatever ROWS and TOKENS are, so that a token's numbers do not depend on its company.
template <int ROWS, int TOKENS>
void tile(const float* x, const float* w, const float* bias, float* y, int64_t inner,
          int64_t outer, bool is_first) {
  Lanes acc[ROWS][TOKENS] = {};
  int64_t k = 0;
  for (; k + LANES <= inner; k += LANES) {
    Lanes weight[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      const float* from = w + r * inner + k;
      weight[r] = load(from);
      if (is_first) __builtin_prefetch(from + FAR);
    }
    for (int t = 0; t < TOKENS; ++t) {
      const Lanes input = load(x + t * inner + k);
      for (int r = 0; r < ROWS; ++r) acc[r][t] += weight[r] * input;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) {
      float total = sum(acc[r][t]);
      for (int64_t rest = k; rest < inner; ++rest)
        total += w[r * inner + rest] * x[t * inner + rest];
      y[t * outer + r] = total + (bias ? bias[r] : 0.f);
    }
}

template <int ROWS, int TOKENS>
void tokens_left(const float* x, const float* w, const float* bias, float* y, int64_t left,
                 int64_t inner, int64_t outer, bool is_first) {
  if constexpr (TOKENS > 0) {
    if (left == TOKENS) return tile<ROWS, TOKENS>(x, w, bias, y, inner, outer, is_first);
    tokens_left<ROWS, TOKENS - 1>(x, w, bias, y, left, inner, outer, is_first);
  }
}

template <int ROWS>
void rows(const float* x, const float* w, const float* bias, float* y, int64_t tokens,
          int64_t inner, int64_t outer) {
  int64_t t = 0;
  for (; t + MOST_COLUMNS <= tokens; t += MOST_COLUMNS)
    tile<ROWS, MOST_COLUMNS>(x + t * inner, w, bias, y + t * outer, inner, outer, t == 0);
  tokens_left<ROWS, MOST_COLUMNS - 1>(x + t * inner, w, bias, y + t * outer, tokens - t, inner,
                                      outer, t == 0);
}

// Rows [begin, end) of w, for all tokens.
void product(const float* x, const float* w, const float* bias, float* y, int64_t tokens,
             int64_t inner, int64_t outer, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + 4 <= end; n += 4)
    rows<4>(x, w + n * inner, bias ? bias + n : nullptr, y + n, tokens, inner, outer);
  for (; n < end; ++n)
    rows<1>(x, w + n * inner, bias ? bias + n : nullptr, y + n, tokens, inner, outer);
}

Tensor linear(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t outer = weight.size(0), inner = weight.size(1);
  const auto fits = [](const Tensor& given) {
    return given.scalar_type() == at::kFloat && given.is_contiguous();
  };
  if (input.dim() < 1 || inner < 1 || input.size(-1) != inner || !fits(weight) ||
      input.scalar_type() != at::kFloat || input.numel() > MOST_TOKENS * inner ||
      (bias && (!fits(*bias) || bias->numel() != outer)))
    return at::linear(input, weight, bias);
  const int64_t tokens = input.numel() / inner;
  const Tensor x = input.contiguous();
  auto shape = input.sizes().vec();
  shape.back() = outer;
  Tensor output = at::empty(shape, input.options());
  const float* xs = x.const_data_ptr<float>();
  const float* ws = weight.const_data_ptr<float>();
  const float* bs = bias ? bias->const_data_ptr<float>() : nullptr;
  float* ys = output.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(4, PARALLEL_WORK / (inner * std::max<int64_t>(tokens, 1)));
  at::parallel_for(0, outer, grain, [&](int64_t begin, int64_t end) {
    product(xs, ws, bs, ys, tokens, inner, outer, begin, end);
  });
  return output;
}

// ---- attention ----------------------------------------------------------------------------------

struct Span {
  int64_t start, stop, position;  // rows of the step, and where the first stands in its session
};

struct Step {
  std::vector<Span> spans;
  std::vector<Tensor> keys, values;  // layer by layer, one a span: [heads, reserved, size]
};

thread_local std::optional<Step> current;

struct Call {
  double scaling;
  int64_t window;  // 0: none
  double softcap;  // 0: none
};

constexpr int64_t BLOCK = 128;  // keys whose scores are held at once
constexpr int64_t QUERIES = 32;  // tokens of a span taken together
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// exp for x <= 0, to a rounding error or two: 2^n times a polynomial.
inline Lanes exponential(Lanes x) {
  const Lanes zero = {};
  const Lanes least = zero - 87.f;
  const Lanes bounded = x < least ? least : x;
  const Lanes scaled = bounded * 1.44269504088896341f - 0.5f;
  const Integers n = __builtin_convertvector(scaled, Integers);  // towards zero: rounds as x <= 0
  const Lanes whole = __builtin_convertvector(n, Lanes);
  const Lanes r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Lanes p = zero + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Integers bits = (n + 127) << 23;
  const Lanes power = reinterpret_cast<const Lanes&>(bits);
  return x < least ? zero : p * power;
}

// Turns scores into weights in place, given the largest so far; returns their sum.
float weigh(float* scores, int64_t count, float largest) {
  float total = 0;
  int64_t j = 0;
  for (; j + LANES <= count; j += LANES) {
    const Lanes weights = exponential(load(scores + j) - largest);
    store(scores + j, weights);
    total += sum(weights);
  }
  for (; j < count; ++j) total += scores[j] = std::exp(scores[j] - largest);
  return total;
}

// out += weights V, for `count` values of `size` numbers.
void gather(const float* weights, const float* values, float* out, int64_t count, int64_t size) {
  int64_t d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) {
    Lanes acc[4];
    for (int i = 0; i < 4; ++i) acc[i] = load(out + d + i * LANES);
    for (int64_t j = 0; j < count; ++j)
      for (int i = 0; i < 4; ++i) acc[i] += weights[j] * load(values + j * size + d + i * LANES);
    for (int i = 0; i < 4; ++i) store(out + d + i * LANES, acc[i]);
  }
  for (; d + LANES <= size; d += LANES) {
    Lanes acc = load(out + d);
    for (int64_t j = 0; j < count; ++j) acc += weights[j] * load(values + j * size + d);
    store(out + d, acc);
  }
  for (; d < size; ++d)
    for (int64_t j = 0; j < count; ++j) out[d] += weights[j] * values[j * size + d];
}

// Queries [begin, end) of a span, of all heads that share one key head, against its keys. Softmax
// goes on from block to block, with the largest score so far.
void attend_head(const Tensor& query, const Span& span, int64_t begin, int64_t end,
                 const float* keys, const float* values, int64_t size, int64_t value_size,
                 int64_t head, int64_t groups, const Call& call, float* output, int64_t heads) {
  const int64_t count = end - begin, stacked = groups * count;
  std::vector<float> queries(stacked * size), scores(stacked * BLOCK), out(stacked * value_size, 0.f);
  std::vector<float> largest(stacked, NOTHING), total(stacked, 0.f);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < count; ++i) {
      const float* from = query.const_data_ptr<float>() + (head * groups + g) * query.stride(0) +
                          (span.start + begin + i) * query.stride(1);
      for (int64_t d = 0; d < size; ++d)
        queries[(g * count + i) * size + d] = from[d] * static_cast<float>(call.scaling);
    }
  const int64_t first_query = span.position + begin, last_query = span.position + end - 1;
  const int64_t first_key = call.window ? std::max<int64_t>(0, first_query - call.window + 1) : 0;
  for (int64_t from = first_key; from <= last_query; from += BLOCK) {
    const int64_t block = std::min(BLOCK, last_query + 1 - from);
    product(queries.data(), keys + from * size, nullptr, scores.data(), stacked, size, BLOCK, 0,
            block);
    for (int64_t row = 0; row < stacked; ++row) {
      const int64_t at = first_query + row % count;
      const int64_t lowest = call.window ? std::max<int64_t>(from, at - call.window + 1) : from;
      const int64_t low = lowest - from, high = std::min(block, at + 1 - from);
      if (low >= high) continue;
      float* const row_scores = scores.data() + row * BLOCK;
      if (call.softcap > 0) {
        const float cap = static_cast<float>(call.softcap);
        for (int64_t j = low; j < high; ++j) row_scores[j] = std::tanh(row_scores[j] / cap) * cap;
      }
      const float now = std::max(largest[row], *std::max_element(row_scores + low, row_scores + high));
      if (now == NOTHING) continue;
      float* const row_out = out.data() + row * value_size;
      if (largest[row] != NOTHING && now > largest[row]) {
        const float shrink = std::exp(largest[row] - now);
        total[row] *= shrink;
        for (int64_t d = 0; d < value_size; ++d) row_out[d] *= shrink;
      }
      largest[row] = now;
      total[row] += weigh(row_scores + low, high - low, now);
      gather(row_scores + low, values + lowest * value_size, row_out, high - low, value_size);
    }
  }
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = g * count + i;
      float* to = output + ((span.start + begin + i) * heads + head * groups + g) * value_size;
      for (int64_t d = 0; d < value_size; ++d) to[d] = out[row * value_size + d] / total[row];
    }
}

void store_new(const Tensor& given, const Tensor& held, const Span& span) {
  held.slice(1, span.position, span.position + span.stop - span.start)
      .copy_(given.slice(1, span.start, span.stop));
}

Tensor last_dense(const Tensor& given) {
  return given.stride(-1) == 1 ? given : given.contiguous();
}

// query [heads, T, size], key and value [kv_heads, T, size] -> [T, heads, value size]
Tensor attend(const Tensor& given_query, const Tensor& key, const Tensor& value, int64_t layer,
              double scaling, int64_t window, double softcap) {
  TORCH_CHECK(current, "attention was called outside a step");
  TORCH_CHECK((layer + 1) * current->spans.size() <= current->keys.size(), "no layer ", layer);
  const Call call{scaling, window, softcap};
  const Step& step = *current;
  const Tensor query = last_dense(given_query);
  const int64_t heads = query.size(0), size = query.size(2), kv_heads = key.size(0);
  const int64_t value_size = value.size(2), groups = heads / kv_heads;
  Tensor output = at::empty({query.size(1), heads, value_size}, query.options());
  struct Task {
    size_t span;
    int64_t head, begin, end;
  };
  std::vector<Task> tasks;
  int64_t work = 0;
  for (size_t s = 0; s < step.spans.size(); ++s) {
    const Span& span = step.spans[s];
    const size_t held = layer * step.spans.size() + s;
    const int64_t count = span.stop - span.start, end = span.position + count;
    store_new(key, step.keys[held], span);
    store_new(value, step.values[held], span);
    // A prompt from its start, without a window that bites: BLAS has the better blocks.
    if (span.position == 0 && count > QUERIES && softcap == 0 && (!window || window >= count)) {
      const Tensor rows = at::scaled_dot_product_attention(
          query.slice(1, span.start, span.stop).unsqueeze(0), key.slice(1, span.start, span.stop).unsqueeze(0),
          value.slice(1, span.start, span.stop).unsqueeze(0), std::nullopt, 0.0, true, scaling, groups > 1);
      output.slice(0, span.start, span.stop).copy_(rows[0].transpose(0, 1));
      continue;
    }
    for (int64_t head = 0; head < kv_heads; ++head)
      for (int64_t begin = 0; begin < count; begin += QUERIES)
        tasks.push_back({s, head, begin, std::min(count, begin + QUERIES)});
    const int64_t seen = window ? std::min(end, window + count) : end;
    work += heads * count * seen * (size + value_size);
  }
  float* const out = output.mutable_data_ptr<float>();
  const int64_t number = tasks.size();
  const int64_t grain = std::max<int64_t>(1, number * PARALLEL_WORK / std::max<int64_t>(1, work));
  at::parallel_for(0, number, grain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Task& task = tasks[i];
      const size_t held = layer * step.spans.size() + task.span;
      const Tensor& keys = step.keys[held];
      const Tensor& values = step.values[held];
      attend_head(query, step.spans[task.span], task.begin, task.end,
                  keys.const_data_ptr<float>() + task.head * keys.stride(0),
                  values.const_data_ptr<float>() + task.head * values.stride(0), size, value_size,
                  task.head, groups, call, out, heads);
    }
  });
  return output;
}

void begin_step(at::IntArrayRef spans, at::TensorList keys, at::TensorList values) {
  Step step;
  for (size_t i = 0; i < spans.size(); i += 3)
    step.spans.push_back({spans[i], spans[i + 1], spans[i + 2]});
  step.keys = keys.vec();
  step.values = values.vec();
  current = std::move(step);
}

void end_step() { current.reset(); }

}  // namespace

TORCH_LIBRARY(outrider, library) {
  library.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, int layer, float scaling, int window, "
      "float softcap) -> Tensor");
  library.def("begin_step(int[] spans, Tensor[] keys, Tensor[] values) -> ()", &begin_step);
  library.def("end_step() -> ()", &end_step);
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("linear", &linear);
  library.impl("attend", &attend);
}
