// Vectors of as many floats as the processor adds at once.

#pragma once

#include <cstdint>
#include <utility>

namespace outrider {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr int MOST_COLUMNS = 6;  // accumulators must fit the registers, four rows of these
#else
constexpr int64_t LANES = 8;
constexpr int MOST_COLUMNS = 3;
#endif
using Lanes = float __attribute__((vector_size(LANES * sizeof(float)), aligned(alignof(float)), may_alias));
using Integers = int32_t __attribute__((vector_size(LANES * sizeof(int32_t)), may_alias));

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, Lanes lanes) { *reinterpret_cast<Lanes*>(to) = lanes; }

#if defined(__clang__)
#define OUTRIDER_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define OUTRIDER_PICK(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif

using EachLane = std::make_integer_sequence<int32_t, LANES>;

// In every 2 * HALF lanes: the halves of a added up, then those of b.
template <int HALF, int32_t... I>
[[gnu::always_inline]] inline Lanes fold(Lanes a, Lanes b, std::integer_sequence<int32_t, I...>) {
  return OUTRIDER_PICK(a, b, (I & HALF ? LANES + I : I)...) +
         OUTRIDER_PICK(a, b, (I & HALF ? LANES + I - HALF : I + HALF)...);
}

template <int HALF, int32_t... I>
[[gnu::always_inline]] inline Lanes fold(Lanes a, std::integer_sequence<int32_t, I...>) {
  return a + OUTRIDER_PICK(a, a, (I ^ HALF)...);
}

template <int STRIDE, int32_t... I>
[[gnu::always_inline]] inline Lanes every(Lanes a, std::integer_sequence<int32_t, I...>) {
  return OUTRIDER_PICK(a, a, (I * STRIDE % LANES)...);
}

// Vectors folded down to halves of HALF lanes; that of number n is added up in lane n * STRIDE.
template <int STRIDE, int HALF, int LANE, typename Of>
[[gnu::always_inline]] inline Lanes folded(const Of& of) {
  if constexpr (HALF == LANES) {
    return of.template operator()<LANE / STRIDE>();
  } else {
    const Lanes a = folded<STRIDE, 2 * HALF, LANE>(of);
    if constexpr (HALF < STRIDE)
      return fold<HALF>(a, EachLane());
    else
      return fold<HALF>(a, folded<STRIDE, 2 * HALF, (LANE | HALF)>(of), EachLane());
  }
}

// The sums of SIZE vectors (a power of two) in the first lanes, each added up by halves: together,
// for apart they would cost more than the products of a short row. `of<n>()` is vector n.
template <int SIZE, typename Of>
[[gnu::always_inline]] inline Lanes sums(const Of& of) {
  constexpr int STRIDE = LANES / SIZE;
  return every<STRIDE>(folded<STRIDE, 1, 0>(of), EachLane());
}

[[gnu::always_inline]] inline float sum(Lanes lanes) {
  return sums<1>([&]<int>() { return lanes; })[0];
}

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

}  // namespace outrider
