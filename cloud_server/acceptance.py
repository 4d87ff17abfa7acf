"""Which guesses stand, and which token follows them: one function a verification mode.

`coupled` makes the output the target's own, token for token, and `rejection` gives it the target's
distribution. `rank` and `typical` are LOSSY: they pass guesses the target would not have made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.lm.noise import Stream, gumbel_argmax, uniform
from common.lm.sampling import Context, choose, distribution, is_greedy, penalise
from common.types import (
    EXACT,
    DraftDistribution,
    SamplingParams,
    VerificationMode,
    VerificationParams,
)


@dataclass(frozen=True, slots=True)
class Check:
    """Asks whether `guesses` stand after the `context` tokens, a prompt first, and what follows.

    Of what the target read for this session before, the first `valid` tokens still stand.
    `distributions` has an entry a guess where the rule needs them, else none.
    """

    context: tuple[int, ...]
    guesses: tuple[int, ...]
    valid: int
    prompt_length: int
    sampling: SamplingParams
    verification: VerificationParams = EXACT
    distributions: tuple[DraftDistribution, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many rows of logits decide it: after the context, and after each guess."""
        return len(self.guesses) + 1


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers a Check: so many guesses stand, and this token of the target's follows them."""

    accepted: int
    next_token_id: int


def needs_distributions(verification: VerificationParams, sampling: SamplingParams) -> bool:
    """Whether each guess must say what it was drawn from."""
    return verification.mode is VerificationMode.REJECTION and not is_greedy(sampling)


def judge(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Answers checks by the target's logits `[sum(num_rows), vocab]`, in their order.

    The answers do not depend on each other. Raises InternalError for logits without a maximum.
    """
    rows = torch.split(logits, [check.num_rows for check in checks])
    answers: dict[int, Judged] = {}
    exact = [index for index, check in enumerate(checks) if _rule(check) is coupled]
    if exact:  # the usual case: one choice over all rows
        together = [checks[index] for index in exact]
        chosen = logits if len(exact) == len(checks) else torch.cat([rows[i] for i in exact])
        answers.update(zip(exact, coupled(chosen, together), strict=True))
    for index, check in enumerate(checks):
        if index not in answers:
            answers[index] = _rule(check)(rows[index], [check])[0]
    return [answers[index] for index in range(len(checks))]


def coupled(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses while they equal the target's own choice."""
    contexts = [context for check in checks for context in _contexts(check)]
    choices = choose(logits, contexts, [c.sampling for c in checks for _ in range(c.num_rows)])
    answers, start = [], 0
    for check in checks:
        own = choices[start : start + check.num_rows]
        start += check.num_rows
        accepted = _count(guess == own[i] for i, guess in enumerate(check.guesses))
        answers.append(Judged(accepted, own[accepted]))
    return answers


def rejection(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts a guess with probability min(1, target / draft), else draws from the excess.

    Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318).
    """
    (check,) = checks
    seed = check.sampling.seed
    target_probs = distribution(logits, _contexts(check), [check.sampling] * check.num_rows)
    for index, guess in enumerate(check.guesses):
        position = len(check.context) + index
        draft_probs = _spread(check.distributions[index], target_probs[index])
        ratio = float(target_probs[index, guess] / draft_probs[guess])
        if uniform(seed, position, Stream.ACCEPTANCE) < ratio:
            continue
        excess = (target_probs[index] - draft_probs).clamp(min=0)
        if not bool(excess.any()):  # the two differ by rounding alone
            excess = target_probs[index]
        return [Judged(index, _draw(excess, seed, position, Stream.RECOVERY))]
    position = len(check.context) + len(check.guesses)
    return [Judged(len(check.guesses), _draw(target_probs[-1], seed, position, Stream.CHOICE))]


def rank(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses among the target's `rank_threshold` likeliest, else writes the likeliest."""
    (check,) = checks
    contexts, params = _contexts(check), [check.sampling] * check.num_rows
    likeliest = choose(logits, contexts, [replace(p, temperature=0.0) for p in params])
    scores = penalise(logits, contexts, params)
    accepted = _count(
        _rank(scores[index], guess) <= check.verification.rank_threshold
        for index, guess in enumerate(check.guesses)
    )
    return [Judged(accepted, likeliest[accepted])]


def typical(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses above min(threshold, alpha * exp(-entropy)), else writes the target's choice.

    Probabilities are those at the request's temperature, at 1 where it is greedy. Cai et al. 2024
    (arXiv 2401.10774), section 2.3.1.
    """
    (check,) = checks
    contexts, params = _contexts(check), [check.sampling] * check.num_rows
    warm = [replace(p, temperature=1.0) if is_greedy(p) else p for p in params]
    target_probs = distribution(logits, contexts, warm)
    entropy = torch.special.entr(target_probs).sum(-1)
    bounds = (check.verification.typical_alpha * torch.exp(-entropy)).clamp(
        max=check.verification.typical_threshold
    )
    accepted = _count(
        bool(target_probs[index, guess] > bounds[index])
        for index, guess in enumerate(check.guesses)
    )
    row = slice(accepted, accepted + 1)
    return [Judged(accepted, choose(logits[row], contexts[row], params[row])[0])]


_RULES: dict[VerificationMode, Callable[[Tensor, Sequence[Check]], list[Judged]]] = {
    VerificationMode.COUPLED: coupled,
    VerificationMode.REJECTION: rejection,
    VerificationMode.RANK: rank,
    VerificationMode.TYPICAL: typical,
}


def _rule(check: Check) -> Callable[[Tensor, Sequence[Check]], list[Judged]]:
    mode = check.verification.mode
    if mode is VerificationMode.REJECTION and is_greedy(check.sampling):
        return coupled  # the limit of both at temperature 0
    return _RULES[mode]


def _contexts(check: Check) -> list[Context]:
    tokens = (*check.context, *check.guesses)
    known = len(check.context)
    return [
        Context(tokens, length, check.prompt_length)
        for length in range(known, known + check.num_rows)
    ]


def _count(passes: Iterable[bool]) -> int:
    """Counts how many pass before the first that does not."""
    return sum(1 for _ in itertools.takewhile(bool, passes))


def _spread(given: DraftDistribution, like: Tensor) -> Tensor:
    """Returns the draft's probabilities over the whole vocabulary, as `like`."""
    spread = torch.zeros_like(like)
    weights = torch.tensor(given.weights, dtype=like.dtype, device=like.device)
    spread[torch.tensor(given.token_ids, device=like.device)] = weights / weights.sum()
    return spread


def _draw(probabilities: Tensor, seed: int, position: int, stream: Stream) -> int:
    return int(gumbel_argmax(probabilities.log().float()[None], [seed], [position], stream)[0])


def _rank(scores: Tensor, token: int) -> int:
    """Returns a token's rank, from 1; of equal scores the lower id comes first."""
    own = scores[token]
    return int((scores > own).sum() + (scores[:token] == own).sum()) + 1
