"""Philox4x32-10, the counter-based generator, in torch integer operations.

A pure function of key and counter, with the same bits on every device. J. Salmon, M. Moraes,
R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four 32-bit words, each in an int64 tensor; the shapes need only broadcast."""


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Encrypts a 128-bit counter under a 64-bit key; words are unsigned, in int64 lanes."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Splits an unsigned 32 x 32 bit product into its high and low word."""
    # The product may pass 2**63. Both multipliers exceed 2**31, so the product with
    # (multiplier - 2**32) fits into 63 bits, and the high word lacks exactly `word`.
    product = word * (multiplier - (1 << 32))
    return ((product >> 32) + word) & _MASK, product & _MASK
