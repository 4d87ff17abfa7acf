// The kernels as operators of torch (see native.py), in float32 on the CPU.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "attention.h"
#include "decoder.h"
#include "product.h"

namespace {

using at::Tensor;
using namespace outrider;

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

struct Step {
  std::vector<Span> spans;
  std::vector<Tensor> keys, values;  // one a layer: [heads, tokens of the pool, size]
};

thread_local std::optional<Step> current;

void store_new(const Tensor& given, const Tensor& held, const Span& span) {
  int64_t row = span.start;
  span.pieces(span.position, span.position + span.stop - span.start,
              [&](int64_t, int64_t place, int64_t tokens) {
                held.slice(1, place, place + tokens).copy_(given.slice(1, row, row + tokens));
                row += tokens;
              });
}

Tensor last_dense(const Tensor& given) {
  return given.stride(-1) == 1 ? given : given.contiguous();
}

// query [heads, T, size], key and value [kv_heads, T, size] -> [T, heads, value size]
Tensor attend(const Tensor& given_query, const Tensor& key, const Tensor& value, int64_t layer,
              double scaling, int64_t window, double softcap) {
  TORCH_CHECK(current, "attention was called outside a step");
  TORCH_CHECK(layer < static_cast<int64_t>(current->keys.size()), "no layer ", layer);
  const Call call{scaling, window, softcap};
  const Step& step = *current;
  const Tensor query = last_dense(given_query);
  const Tensor &keys = step.keys[layer], &values = step.values[layer];
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
    const int64_t count = span.stop - span.start, end = span.position + count;
    store_new(key, keys, span);
    store_new(value, values, span);
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
  const Queries queries{query.const_data_ptr<float>(), query.stride(0), query.stride(1)};
  const int64_t number = tasks.size();
  const int64_t grain = std::max<int64_t>(1, number * PARALLEL_WORK / std::max<int64_t>(1, work));
  at::parallel_for(0, number, grain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Task& task = tasks[i];
      attend_head(queries, step.spans[task.span], task.begin, task.end,
                  keys.const_data_ptr<float>() + task.head * keys.stride(0),
                  values.const_data_ptr<float>() + task.head * values.stride(0), size, value_size,
                  task.head, groups, call, out, heads);
    }
  });
  return output;
}

void begin_step(at::IntArrayRef places, at::TensorList keys, at::TensorList values) {
  current = {read_spans(places), keys.vec(), values.vec()};
}

void end_step() { current.reset(); }

}  // namespace

TORCH_LIBRARY(outrider, library) {
  library.class_<Decoder>("Decoder")
      .def(torch::init<c10::List<std::optional<Tensor>>, std::vector<int64_t>, std::vector<double>,
                       std::vector<int64_t>, std::vector<double>, std::vector<double>>())
      .def("run", &Decoder::run);
  library.def("most_tokens() -> int", [] { return MOST_TOKENS; });
  library.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, int layer, float scaling, int window, "
      "float softcap) -> Tensor");
  library.def("begin_step(int[] places, Tensor[] keys, Tensor[] values) -> ()", &begin_step);
  library.def("end_step() -> ()", &end_step);
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("linear", &linear);
  library.impl("attend", &attend);
}
