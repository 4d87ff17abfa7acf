// y = x W^T + b, for as many tokens as a step of some sessions has. The weight is read where it lies,
// never packed: a few of its rows stay in the first cache while a block of tokens goes by.

#pragma once

#include "lanes.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace outrider {

#if defined(__AVX512F__)
constexpr int64_t MOST_TOKENS = 96;  // beyond, BLAS is faster, which packs the weight first
#else
constexpr int64_t MOST_TOKENS = 16;
#endif
constexpr int64_t ROWS = 4;  // of the weight, taken together
constexpr int64_t MOST_INNER = 1024;  // of a row, in the first cache with the columns' share of x
constexpr int64_t MOST_X = 1 << 18;  // numbers of a block of tokens, in the second cache
constexpr int64_t FAR = 4096;  // numbers ahead, at least, that memory is asked for
constexpr int64_t PARALLEL_WORK = 1 << 15;  // multiplications worth a second thread

struct Shape {
  int64_t inner, outer;
};

// Adds up what tile() has, from token T on, with the columns from k on and the bias, into y.
template <int R, int TOKENS, int T>
[[gnu::always_inline]] inline void finish(const Lanes (&acc)[R][TOKENS], const float* x, const float* w,
                                          const float* bias, float* y, Shape shape, int64_t k) {
  constexpr int SOME = std::min<int>(TOKENS - T, LANES / R);
  const Lanes all = sums<R * std::bit_ceil<unsigned>(SOME)>(
      [&]<int N>() { return acc[N % R][std::min(T + N / R, TOKENS - 1)]; });
  float total[LANES];
  store(total, all);
  for (int t = 0; t < SOME; ++t) {
    const float* const from = x + (T + t) * shape.inner;
    for (int64_t rest = k; rest < shape.inner; ++rest)
      for (int r = 0; r < R; ++r)
        total[t * R + r] = std::fma(w[r * shape.inner + rest], from[rest], total[t * R + r]);
    for (int r = 0; r < R; ++r) y[(T + t) * shape.outer + r] = total[t * R + r] + (bias ? bias[r] : 0.f);
  }
  if constexpr (T + SOME < TOKENS) finish<R, TOKENS, T + SOME>(acc, x, w, bias, y, shape, k);
}

// y[t * outer + r] for R rows of w and TOKENS rows of x, of which columns [from, to) are added to
// what `held` has of those before. Each sum runs over the same lanes in the same order whatever R
// and TOKENS are, so that a token's numbers do not depend on its company. Meanwhile memory is asked
// for ASKED rows at `ask`.
template <int R, int TOKENS, int ASKED>
void tile(const float* x, const float* w, const float* bias, float* y, Shape shape, int64_t from,
          int64_t to, Lanes* held, const float* ask) {
  const int64_t inner = shape.inner;
  const bool is_last = to == inner;
  Lanes acc[R][TOKENS] = {};
  if (from)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) acc[r][t] = held[r * TOKENS + t];
  int64_t k = from;
  for (; k + LANES <= to; k += LANES) {
    Lanes weight[R];
    for (int r = 0; r < R; ++r) weight[r] = load(w + r * inner + k);
    for (int r = 0; r < ASKED; ++r) __builtin_prefetch(ask + r * inner + k);
    for (int t = 0; t < TOKENS; ++t) {
      const Lanes input = load(x + t * inner + k);
      for (int r = 0; r < R; ++r) acc[r][t] += weight[r] * input;
    }
  }
  if (!is_last) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t) held[r * TOKENS + t] = acc[r][t];
    return;
  }
  finish<R, TOKENS, 0>(acc, x, w, bias, y, shape, k);
}

template <int R, int TOKENS, int ASKED, typename... Rest>
void tile_of(int64_t tokens, Rest... rest) {
  if constexpr (TOKENS > 0) {
    if (tokens == TOKENS) return tile<R, TOKENS, ASKED>(rest...);
    tile_of<R, TOKENS - 1, ASKED>(tokens, rest...);
  }
}

// R rows of w for a block of tokens, as even a number at a time as the registers allow. Each pass
// asks for its part of the rows to come, so that memory is never idle.
template <int R>
void rows(const float* x, const float* w, const float* bias, float* y, int64_t tokens, Shape shape) {
  alignas(64) Lanes held[R * MOST_X / (2 * MOST_INNER)];  // of use where a row has two parts
  const int64_t inner = shape.inner;
  const int64_t parts = std::max<int64_t>(1, inner / MOST_INNER);
  const int64_t passes = (tokens + MOST_COLUMNS - 1) / MOST_COLUMNS;
  const float* const ask = w + std::max(FAR, R * inner);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = inner * part / parts / LANES * LANES;
    const int64_t to = part + 1 == parts ? inner : inner * (part + 1) / parts / LANES * LANES;
    for (int64_t pass = 0, t = 0, asked = 0; pass < passes; ++pass) {
      const int64_t count = (tokens - t + passes - pass - 1) / (passes - pass);
      const int64_t upto = R * (pass + 1) / passes;
      const auto run = [&]<int ASKED>() {
        tile_of<R, MOST_COLUMNS, ASKED>(count, x + t * inner, w, bias, y + t * shape.outer, shape, from,
                                        to, held + R * t, ask + asked * inner);
      };
      if (upto == asked) run.template operator()<0>();
      else if (upto == asked + 1) run.template operator()<1>();
      else if (upto < asked + R) run.template operator()<R / 2>();
      else run.template operator()<R>();
      t += count, asked = upto;
    }
  }
}

// Rows [begin, end) of w, for all tokens.
inline void product(const float* x, const float* w, const float* bias, float* y, int64_t tokens,
                    int64_t inner, int64_t outer, int64_t begin, int64_t end) {
  const int64_t most = std::max<int64_t>(1, MOST_X / inner);
  const int64_t blocks = (tokens + most - 1) / most;
  for (int64_t block = 0, t = 0; block < blocks; ++block) {
    const int64_t count = (tokens - t + blocks - block - 1) / (blocks - block);
    const auto some = [&]<int R>(int64_t n) {
      rows<R>(x + t * inner, w + n * inner, bias ? bias + n : nullptr, y + t * outer + n, count,
              {inner, outer});
    };
    int64_t n = begin;
    for (; n + ROWS <= end; n += ROWS) some.template operator()<ROWS>(n);
    for (; n < end; ++n) some.template operator()<1>(n);
    t += count;
  }
}

}  // namespace outrider
