"""Which guesses stand, and which token follows them: one function a verification mode.

`coupled` makes the output the target's own, token for token, and `rejection` gives it the target's
distribution. `rank` and `typical` are LOSSY: they pass guesses the target would not have made.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cloud_server.counting import count_there
from common.lm.noise import Stream, gumbel_argmax, uniform
from common.lm.sampling import (
    Context,
    choose,
    choose_there,
    distribution,
    no_maximum,
    penalise,
)
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
    return verification.mode is VerificationMode.REJECTION and not sampling.is_greedy


def judge(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Answers checks by the target's logits `[sum(num_rows), vocab]`, in their order.

    The answers do not depend on each other. Raises InternalError for logits without a maximum.
    """
    groups: dict[Rule, list[int]] = defaultdict(list)
    for index, check in enumerate(checks):
        groups[_rule(check)].append(index)
    rows = torch.split(logits, [check.num_rows for check in checks])
    answers: dict[int, Judged] = {}
    for rule, members in groups.items():
        # Usually there is one group, and nothing to copy.
        own = logits if len(groups) == 1 else torch.cat([rows[index] for index in members])
        answers.update(zip(members, rule(own, [checks[index] for index in members]), strict=True))
    return [answers[index] for index in range(len(checks))]


def coupled(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses while they equal the target's own choice."""
    if logits.is_cuda:
        return coupled_there(logits, checks)
    choices = choose(logits, *_each_row(checks))
    ends = _count(checks, lambda _, row, guess: guess == choices[row])
    return [Judged(accepted, choices[row]) for accepted, row in ends]


def coupled_there(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Does so on the device of the logits, of which one answer is read, once."""
    choices = choose_there(logits, *_each_row(checks))
    accepted, following = count_there(choices, [check.guesses for check in checks]).tolist()
    if min(following, default=0) < 0:
        raise no_maximum()
    return [Judged(*end) for end in zip(accepted, following, strict=True)]


def rejection(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts a guess with probability min(1, target / draft), else draws from the excess.

    Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; Chen et al. 2023 (arXiv 2302.01318).
    """
    contexts, params = _each_row(checks)
    seeds, positions = [given.seed for given in params], [context.length for context in contexts]
    target_probs = distribution(logits, contexts, params)
    draft_probs = _draft_probs(checks, target_probs)
    guesses = [guess for check in checks for guess in (*check.guesses, 0)]
    column = torch.tensor(guesses, device=logits.device)[:, None]
    ratios = (target_probs.gather(1, column) / draft_probs.gather(1, column))[:, 0].tolist()
    drawn = uniform(seeds, positions, Stream.ACCEPTANCE)
    ends = _count(checks, lambda _, row, __: drawn[row] < ratios[row])
    rows = [row for _, row in ends]
    own = gumbel_argmax(
        _excess(target_probs[rows], draft_probs[rows]).log().float(),
        [seeds[row] for row in rows],
        [positions[row] for row in rows],
        Stream.CHOICE,
    )
    return [Judged(accepted, token) for (accepted, _), token in zip(ends, own, strict=True)]


def rank(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses among the target's `rank_threshold` likeliest, else writes the likeliest."""
    contexts, params = _each_row(checks)
    likeliest = choose(logits, contexts, [replace(given, temperature=0.0) for given in params])
    scores = penalise(logits, contexts, params)

    def stands(check: Check, row: int, guess: int) -> bool:
        return _rank(scores[row], guess) <= check.verification.rank_threshold

    return [Judged(accepted, likeliest[row]) for accepted, row in _count(checks, stands)]


def typical(logits: Tensor, checks: Sequence[Check]) -> list[Judged]:
    """Accepts guesses above min(threshold, alpha * exp(-entropy)), else writes the target's choice.

    Probabilities are those at the request's temperature, at 1 where it is greedy. Cai et al. 2024
    (arXiv 2401.10774), section 2.3.1.
    """
    contexts, params = _each_row(checks)
    warm = [replace(given, temperature=1.0) if given.is_greedy else given for given in params]
    target_probs = distribution(logits, contexts, warm)
    entropies = torch.special.entr(target_probs).sum(-1).tolist()

    def stands(check: Check, row: int, guess: int) -> bool:
        rule = check.verification
        bound = min(rule.typical_threshold, rule.typical_alpha * math.exp(-entropies[row]))
        return float(target_probs[row, guess]) > bound

    ends = _count(checks, stands)
    rows = [row for _, row in ends]
    own = choose(logits[rows], [contexts[row] for row in rows], [params[row] for row in rows])
    return [Judged(accepted, token) for (accepted, _), token in zip(ends, own, strict=True)]


Rule = Callable[[Tensor, Sequence[Check]], list[Judged]]

_RULES: dict[VerificationMode, Rule] = {
    VerificationMode.COUPLED: coupled,
    VerificationMode.REJECTION: rejection,
    VerificationMode.RANK: rank,
    VerificationMode.TYPICAL: typical,
}


def _rule(check: Check) -> Rule:
    mode = check.verification.mode
    if mode is VerificationMode.REJECTION and check.sampling.is_greedy:
        return coupled  # the limit of both at temperature 0
    return _RULES[mode]


def _each_row(checks: Sequence[Check]) -> tuple[list[Context], list[SamplingParams]]:
    """Returns what stands before each row's choice, and how it is made."""
    contexts: list[Context] = []
    for check in checks:
        tokens, known = (*check.context, *check.guesses), len(check.context)
        lengths = range(known, known + check.num_rows)
        contexts += [Context(tokens, length, check.prompt_length) for length in lengths]
    return contexts, [check.sampling for check in checks for _ in range(check.num_rows)]


def _count(
    checks: Sequence[Check], stands: Callable[[Check, int, int], bool]
) -> list[tuple[int, int]]:
    """Counts each check's guesses before the first that does not stand.

    Asks for a check, a row and the guess it judges; returns with each count the row that chooses
    the token after those guesses.
    """
    ends, start = [], 0
    for check in checks:
        accepted = 0
        while accepted < len(check.guesses) and stands(
            check, start + accepted, check.guesses[accepted]
        ):
            accepted += 1
        ends.append((accepted, start + accepted))
        start += check.num_rows
    return ends


def _draft_probs(checks: Sequence[Check], like: Tensor) -> Tensor:
    """Returns what each row's guess was drawn from, as `like`; zeros in rows that judge none."""
    rows: list[int] = []
    token_ids: list[int] = []
    weights: list[int] = []
    start = 0
    for check in checks:
        for row, given in enumerate(check.distributions, start):
            rows += [row] * len(given.token_ids)
            token_ids += given.token_ids
            weights += given.weights
        start += check.num_rows
    spread = torch.zeros_like(like)
    index = (torch.tensor(rows, dtype=torch.long), torch.tensor(token_ids, dtype=torch.long))
    spread[index] = torch.tensor(weights, dtype=like.dtype, device=like.device)
    return spread / spread.sum(-1, keepdim=True).clamp(min=1)


def _excess(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Returns what the target has beyond the draft `[n, vocab]`, all of it where there is none.

    Its sums are not 1; what draws from it does not mind.
    """
    excess = (target_probs - draft_probs).clamp(min=0)
    # None at all: the two differ by rounding alone.
    return torch.where(excess.any(-1, keepdim=True), excess, target_probs)


def _rank(scores: Tensor, token: int) -> int:
    """Returns a token's rank, from 1; of equal scores the lower id comes first."""
    own = scores[token]
    return int((scores > own).sum() + (scores[:token] == own).sum()) + 1
