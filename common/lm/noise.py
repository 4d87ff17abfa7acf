"""The randomness of a generation: a pure function of (seed, stream, position, token id).

Every number is a word of Philox4x32-10 whose key is the seed and whose counter is
(token id // 4, position, stream); the word is token id % 4. Streams keep apart what must be
independent: what the target chooses, what the draft guesses, whether a guess is accepted.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.lm.philox import philox
from common.lm.staging import staged

REACH = 26.1
"""Nats between the largest noise, 33 ln 2, and the least, -ln(33 ln 2), rounded up."""
_SLACK = 1e-3
"""Nats by which noise in float32 may stray, a hundred times over."""
_NUMBERS = 1 << 22
"""Numbers drawn at once, in whole rows; each takes some tens of bytes on its way."""
_RIVALS = 8
"""Tokens of a row between which float64 decides where nobody waits to count them. That a ninth
comes within the slack of the best has a chance of some 1e-24."""
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
) -> list[int]:
    """Draws one token a row from softmax(scores): the argmax of score plus Gumbel noise.

    Noise is made only where it can matter. Tokens too far below the likeliest win with no noise;
    of the rest, float32 tells all but the winner and its closest rivals apart; those are compared
    in float64 on the host. So the tokens are the same on every device and in every batch.
    """
    chosen: list[int] = []
    for rows in _parts(scores):
        chosen += _draw(scores[rows], seeds[rows], positions[rows], stream)
    return chosen


def gumbel_argmax_there(
    scores: Tensor,  # [n, vocab], -inf where a token is cut
    seeds: Sequence[int],
    positions: Sequence[int],
    stream: Stream,
) -> Tensor:
    """Draws as `gumbel_argmax` does, on the scores' device and without waiting for it: `[n]`.

    Noise is made for all tokens, in float32, and again in float64 for the best of each row.
    """
    parts = [
        _draw_there(scores[rows], seeds[rows], positions[rows], stream) for rows in _parts(scores)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(scores: Tensor) -> list[slice]:
    """Divides rows `[n, vocab]` into those whose noise is made at once."""
    count = max(1, _NUMBERS // scores.shape[1])
    return [slice(start, start + count) for start in range(0, len(scores), count)]


def _draw_there(
    scores: Tensor, seeds: Sequence[int], positions: Sequence[int], stream: Stream
) -> Tensor:
    near = scores.float() - scores.float().amax(-1, keepdim=True)
    vocab_size, device = near.shape[1], near.device
    blocks = torch.arange(-(-vocab_size // 4), device=device)[None]
    rows = torch.arange(len(scores), device=device)[:, None]
    words = _words(seeds, positions, rows, blocks, stream).flatten(1)[:, :vocab_size]
    rivals = (near + _rough_gumbel(words)).topk(min(_RIVALS, vocab_size)).indices
    rivals = rivals.sort().values  # of equal sums the lower id comes first
    shares = (words.gather(1, rivals).double() + 0.5) / 2**32
    sums = near.gather(1, rivals).double() - torch.log(-torch.log(shares))
    return rivals.gather(1, sums.argmax(-1, keepdim=True))[:, 0]


def _draw(
    scores: Tensor, seeds: Sequence[int], positions: Sequence[int], stream: Stream
) -> list[int]:
    rows, blocks, near = _within_reach(scores)
    words = _words(seeds, positions, rows, blocks, stream)
    sums = near + _rough_gumbel(words)
    best = torch.full((len(scores),), -math.inf, device=scores.device)
    best.scatter_reduce_(0, rows, sums.amax(-1), "amax")
    entries, places = (sums >= best[rows, None] - _SLACK).nonzero(as_tuple=True)
    rivals = zip(
        rows[entries].tolist(),
        (4 * blocks[entries] + places).tolist(),
        near[entries, places].tolist(),
        words[entries, places].tolist(),
        strict=True,
    )
    chosen, tops = [0] * len(scores), [-math.inf] * len(scores)
    for row, token, score, word in rivals:
        total = score + _gumbel(word)
        if total > tops[row]:
            chosen[row], tops[row] = token, total
    return chosen


def uniform(seeds: Sequence[int], positions: Sequence[int], stream: Stream) -> list[float]:
    """Draws one number in (0, 1) for each seed and position."""
    rows = torch.arange(len(seeds))
    words = _words(seeds, positions, rows, torch.zeros_like(rows), stream)
    return [(word + 0.5) / 2**32 for word in words[:, 0].tolist()]


def _within_reach(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the blocks of four tokens of which one can win.

    Returns the row and the number of each, `[m]`, and its scores less the row's best, `[m, 4]`.
    """
    below = scores.float() - scores.float().amax(-1, keepdim=True)
    below = torch.nn.functional.pad(below, (0, -below.shape[1] % 4), value=-math.inf)
    below = below.view(len(scores), -1, 4)
    rows, blocks = (below >= -REACH).any(-1).nonzero(as_tuple=True)
    return rows, blocks, below[rows, blocks]


def _words(
    seeds: Sequence[int], positions: Sequence[int], rows: Tensor, blocks: Tensor, stream: Stream
) -> Tensor:
    """Makes the words `[..., 4]` of blocks in rows of so many seeds and positions."""
    seed = staged([_signed(value) for value in seeds], rows.device)[rows]
    position = staged(positions, rows.device)[rows]
    words = philox(
        (blocks, position & _MASK, position >> 32, torch.full_like(blocks, stream)),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    return torch.stack(words, dim=-1)


def _gumbel(word: int) -> float:
    return -math.log(-math.log((word + 0.5) / 2**32))


def _rough_gumbel(words: Tensor) -> Tensor:
    """Makes `_gumbel` in float32; near 1, from the distance to 1, which keeps its digits there."""
    low = torch.log((words.float() + 0.5) * 2.0**-32)
    high = torch.log1p(((_MASK - words).float() + 0.5) * -(2.0**-32))
    return -torch.log(-torch.where(words >> 31 == 0, low, high))


def _signed(seed: int) -> int:
    """Folds any integer to the int64 with the same lower 64 bits."""
    return ((seed + (1 << 63)) % (1 << 64)) - (1 << 63)
