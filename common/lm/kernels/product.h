// y = x W^T + b for few tokens: the weight is read once, where it lies.

#pragma once

#include "lanes.h"

namespace outrider {

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
inline void product(const float* x, const float* w, const float* bias, float* y, int64_t tokens,
             int64_t inner, int64_t outer, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + 4 <= end; n += 4)
    rows<4>(x, w + n * inner, bias ? bias + n : nullptr, y + n, tokens, inner, outer);
  for (; n < end; ++n)
    rows<1>(x, w + n * inner, bias ? bias + n : nullptr, y + n, tokens, inner, outer);
}

}  // namespace outrider
