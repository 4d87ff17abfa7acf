// Attention of some tokens of a session to its keys and values, read once, in the pages they lie in.

#pragma once

#include "lanes.h"
#include "product.h"

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace outrider {

struct Run {
  int64_t first, tokens;  // of the pool
};

struct Span {
  int64_t start, stop, position;  // rows of the step, and where the first stands in its session
  std::vector<Run> runs;          // the session's tokens in the pool, in order

  // Calls with (position, place in the pool, tokens) for each piece of [from, to) in one run.
  template <typename Visit>
  void pieces(int64_t from, int64_t to, const Visit& visit) const {
    int64_t at = 0;
    for (const Run& run : runs) {
      const int64_t low = std::max(from, at), high = std::min(to, at + run.tokens);
      if (low < high) visit(low, run.first + low - at, high - low);
      at += run.tokens;
    }
  }
};

// Reads start, stop, position, the number of runs and these, one span after the other.
inline std::vector<Span> read_spans(at::IntArrayRef places) {
  std::vector<Span> spans;
  for (size_t i = 0; i < places.size();) {
    Span span{places[i], places[i + 1], places[i + 2], {}};
    int64_t left = places[i + 3];
    for (i += 4; left > 0; --left, i += 2) span.runs.push_back({places[i], places[i + 1]});
    spans.push_back(std::move(span));
  }
  return spans;
}

struct Queries {
  const float* data;
  int64_t head_stride, row_stride;
};

struct Call {
  double scaling;
  int64_t window;  // 0: none
  double softcap;  // 0: none
};

constexpr int64_t BLOCK = 128;  // keys whose scores are held at once
constexpr int64_t QUERIES = 32;  // tokens of a span taken together
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Turns scores into weights in place, given the largest so far; returns their sum.
inline float weigh(float* scores, int64_t count, float largest) {
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
inline void gather(const float* weights, const float* values, float* out, int64_t count, int64_t size) {
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

// Queries [begin, end) of a span, of all heads that share one key head, against its keys; `keys` and
// `values` are that head's in the pool. Softmax goes on from block to block, with the largest score
// so far.
inline void attend_head(const Queries& query, const Span& span, int64_t begin, int64_t end,
                        const float* keys, const float* values, int64_t size, int64_t value_size,
                        int64_t head, int64_t groups, const Call& call, float* output,
                        int64_t heads) {
  const int64_t count = end - begin, stacked = groups * count;
  std::vector<float> queries(stacked * size), scores(stacked * BLOCK), out(stacked * value_size, 0.f);
  std::vector<float> largest(stacked, NOTHING), total(stacked, 0.f);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < count; ++i) {
      const float* from = query.data + (head * groups + g) * query.head_stride +
                          (span.start + begin + i) * query.row_stride;
      for (int64_t d = 0; d < size; ++d)
        queries[(g * count + i) * size + d] = from[d] * static_cast<float>(call.scaling);
    }
  const int64_t first_query = span.position + begin, last_query = span.position + end - 1;
  const int64_t first_key = call.window ? std::max<int64_t>(0, first_query - call.window + 1) : 0;
  for (int64_t from = first_key; from <= last_query; from += BLOCK) {
    const int64_t block = std::min(BLOCK, last_query + 1 - from);
    span.pieces(from, from + block, [&](int64_t at, int64_t place, int64_t tokens) {
      product(queries.data(), keys + place * size, nullptr, scores.data() + at - from, stacked, size,
              BLOCK, 0, tokens);
    });
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
      span.pieces(lowest, from + high, [&](int64_t at, int64_t place, int64_t tokens) {
        gather(row_scores + at - from, values + place * value_size, row_out, tokens, value_size);
      });
    }
  }
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = g * count + i;
      float* to = output + ((span.start + begin + i) * heads + head * groups + g) * value_size;
      for (int64_t d = 0; d < value_size; ++d) to[d] = out[row * value_size + d] / total[row];
    }
}

}  // namespace outrider
