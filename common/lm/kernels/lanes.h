// Vectors of as many floats as the processor adds at once.

#pragma once

#include <cstdint>
#include <cstring>

namespace outrider {

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
