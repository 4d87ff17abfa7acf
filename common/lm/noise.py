"""The randomness of a generation: a pure function of (seed, stream, position, token id).

Every number is a word of Philox4x32-10 whose key is the seed and whose counter is
(token id // 4, position, stream); the word is token id % 4. Streams keep apart what must be
independent: what the target chooses, what the draft guesses, whether a guess is accepted.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from common.lm.philox import philox

_MASK = 0xFFFFFFFF


class Stream(enum.IntEnum):
    """Says what a number decides; numbers of different streams are independent."""

    CHOICE = 0  # the target's own token, bonus or recovered, and the guess coupled with it
    GUESS = 1  # a guess drawn from the draft's own distribution (rejection)
    ACCEPTANCE = 2  # whether that guess is accepted


def gumbel_argmax(
    scores: Tensor,  # [n, vocab], -inf where a token is cut
    seeds: Sequence[int],
    positions: Sequence[int],
    stream: Stream,
) -> Tensor:
    """Draws one token a row from softmax(scores), `[n]`: the argmax of score plus Gumbel noise."""
    uniform = _uniform(seeds, positions, scores.shape[1], stream, scores.device)
    return (scores.double() - torch.log(-torch.log(uniform))).argmax(-1)


def uniform(seeds: Sequence[int], positions: Sequence[int], stream: Stream) -> list[float]:
    """Draws one number in (0, 1) for each seed and position."""
    drawn: list[float] = _uniform(seeds, positions, 1, stream, torch.device("cpu"))[:, 0].tolist()
    return drawn


def _uniform(
    seeds: Sequence[int],
    positions: Sequence[int],
    vocab_size: int,
    stream: Stream,
    device: torch.device,
) -> Tensor:
    """Draws `[n, vocab_size]` float64 numbers in (0, 1)."""
    seed = torch.tensor([[_signed(value)] for value in seeds], device=device)
    position = torch.tensor([[value] for value in positions], device=device)
    block = torch.arange(-(-vocab_size // 4), device=device)[None]
    words = philox(
        (block, position & _MASK, position >> 32, torch.full_like(position, stream)),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    bits = torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]
    return (bits.double() + 0.5) * 2.0**-32  # in (0, 1), exact


def _signed(seed: int) -> int:
    """Folds any integer to the int64 with the same lower 64 bits."""
    return ((seed + (1 << 63)) % (1 << 64)) - (1 << 63)
