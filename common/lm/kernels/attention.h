// Attention of some tokens of a session to its keys and values, read once, in the pages they lie in.

#pragma once

#include "lanes.h"
#include "product.h"

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
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
  Lanes totals = {};
  int64_t j = 0;
  for (; j + LANES <= count; j += LANES) {
    const Lanes weights = exponential(load(scores + j) - largest);
    store(scores + j, weights);
    totals += weights;
  }
  float total = sum(totals);
  for (; j < count; ++j) total += scores[j] = std::exp(scores[j] - largest);
  return total;
}

// The largest of some scores and of what was the largest before.
inline float most(const float* scores, int64_t count, float largest) {
  int64_t j = 0;
  if (count >= LANES) {
    Lanes tops = load(scores);
    for (j = LANES; j + LANES <= count; j += LANES) {
      const Lanes these = load(scores + j);
      tops = these > tops ? these : tops;
    }
    for (int64_t i = 0; i < LANES; ++i) largest = std::max(largest, tops[i]);
  }
  for (; j < count; ++j) largest = std::max(largest, scores[j]);
  return largest;
}

// out += weights V for ROWS rows of weights, and `count` values of `size` numbers, each read once
// for all of them. A row's sums run in the same order whatever ROWS is.
template <int ROWS>
void gather(const float* const* weights, const float* values, float* const* out, int64_t count, int64_t size) {
  const auto columns = [&]<int WIDTH>(int64_t d) {
    Lanes acc[ROWS][WIDTH];
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < WIDTH; ++i) acc[r][i] = load(out[r] + d + i * LANES);
    for (int64_t j = 0; j < count; ++j)
      for (int i = 0; i < WIDTH; ++i) {
        const Lanes value = load(values + j * size + d + i * LANES);
        for (int r = 0; r < ROWS; ++r) acc[r][i] += weights[r][j] * value;
      }
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < WIDTH; ++i) store(out[r] + d + i * LANES, acc[r][i]);
  };
  int64_t d = 0;
  for (; d + 4 * LANES <= size; d += 4 * LANES) columns.template operator()<4>(d);
  for (; d + LANES <= size; d += LANES) columns.template operator()<1>(d);
  for (; d < size; ++d)
    for (int r = 0; r < ROWS; ++r)
      for (int64_t j = 0; j < count; ++j) out[r][d] = std::fma(weights[r][j], values[j * size + d], out[r][d]);
}

template <int ROWS>
void gather_of(int64_t rows, const float* const* weights, const float* values, float* const* out,
               int64_t count, int64_t size) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return gather<ROWS>(weights, values, out, count, size);
    gather_of<ROWS - 1>(rows, weights, values, out, count, size);
  }
}

// Turns a row's scores of some keys into weights, given the largest score and the sum of weights so
// far, which `out` was summed up with; returns whether there are any.
inline bool weigh_row(float* scores, int64_t count, double softcap, float* out, int64_t size,
                      float& largest, float& total) {
  if (softcap > 0) {
    const float cap = static_cast<float>(softcap);
    for (int64_t j = 0; j < count; ++j) scores[j] = std::tanh(scores[j] / cap) * cap;
  }
  const float now = most(scores, count, largest);
  if (now == NOTHING) return false;
  if (largest != NOTHING && now > largest) {
    const float shrink = std::exp(largest - now);
    total *= shrink;
    for (int64_t d = 0; d < size; ++d) out[d] *= shrink;
  }
  largest = now;
  total += weigh(scores, count, now);
  return true;
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
  std::vector<const float*> weighted;  // rows of the scores, and where each is summed up
  std::vector<float*> into;
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
    // What a token sees of the block; as tokens follow each other, many see the same.
    const auto seen = [&](int64_t i) {
      const int64_t at = first_query + i;
      const int64_t lowest = call.window ? std::max<int64_t>(from, at - call.window + 1) : from;
      return std::pair{lowest - from, std::min(block, at + 1 - from)};
    };
    for (int64_t i = 0, next = 0; i < count; i = next) {
      const auto [low, high] = seen(i);
      for (next = i + 1; next < count && seen(next) == std::pair{low, high};) ++next;
      if (low >= high) continue;
      weighted.clear(), into.clear();
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t row = g * count + i; row < g * count + next; ++row) {
          float* const row_scores = scores.data() + row * BLOCK;
          float* const row_out = out.data() + row * value_size;
          if (!weigh_row(row_scores + low, high - low, call.softcap, row_out, value_size, largest[row], total[row]))
            continue;
          weighted.push_back(row_scores), into.push_back(row_out);
        }
      span.pieces(from + low, from + high, [&](int64_t at, int64_t place, int64_t tokens) {
        const int64_t rows = weighted.size();
        for (int64_t r = 0; r < rows; r += MOST_COLUMNS) {
          const float* weights[MOST_COLUMNS];
          const int64_t some = std::min<int64_t>(MOST_COLUMNS, rows - r);
          for (int64_t k = 0; k < some; ++k) weights[k] = weighted[r + k] + at - from;
          gather_of<MOST_COLUMNS>(some, weights, values + place * value_size, into.data() + r, tokens, value_size);
        }
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
