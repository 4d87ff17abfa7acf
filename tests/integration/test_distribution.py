"""The text has the target's own distribution: the real loop against exact enumeration.

All seeds are fixed, so a run passes always or never; a right program would fail a new choice of
seeds with chance ALPHA a comparison. That the tests can fail is tested too: classic errors are
planted in the real code, one at a time, and each is caught by the same comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cloud_server import acceptance
from cloud_server.acceptance import Check
from common.lm import sampling
from common.lm.noise import Stream, gumbel_argmax
from common.lm.sampling import Context
from common.types import SamplingParams, VerificationMode, VerificationParams
from edge_client.policy import DraftPolicy
from tests.enumeration import EOS, Fit, exact, fit, tables
from tests.lockstep import Regardless, Setup, write

ALPHA = 1e-6
SAMPLES = 100_000
SAMPLES_OF_A_FAULT = 16_000  # a distribution this wrong needs no more

TARGET, DRAFT = tables(6, distance=0.7, seed=1)
WIDE_TARGET, WIDE_DRAFT = tables(16, distance=1.5, seed=2)
REJECTION = VerificationParams(VerificationMode.REJECTION)
TRUNCATED = SamplingParams(temperature=0.8, top_k=5, top_p=0.85)

COUPLED = Setup(TARGET, DRAFT, drafter=Regardless)
REJECTED = replace(COUPLED, verification=REJECTION, policy=DraftPolicy(candidates=4))
SETUPS = {
    "coupled": COUPLED,
    "coupled, truncated, drafts that stop": replace(
        COUPLED, sampling=TRUNCATED, policy=DraftPolicy(min_confidence=0.5)
    ),
    "rejection": REJECTED,
    "rejection, truncated, drafts that stop": replace(
        REJECTED, sampling=TRUNCATED, policy=DraftPolicy(candidates=3, min_confidence=0.5)
    ),
    "rejection, sixteen tokens, far-off drafts": replace(
        REJECTED, target=WIDE_TARGET, draft=WIDE_DRAFT, policy=DraftPolicy(candidates=8)
    ),
    "coupled, sent ahead": replace(COUPLED, lengths=(0, 1, 2), ahead=2),
    "rejection, sent ahead": replace(REJECTED, lengths=(0, 1, 2), ahead=2),
}


def fits(found: Fit) -> bool:
    """Whether a sample may come from the exact distribution, by both measures."""
    near = found.total_variation <= found.variation_bound(ALPHA)
    return found.p_value > ALPHA and near


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SETUPS)
def test_many_thousand_texts_have_the_targets_distribution(name: str) -> None:
    setup = SETUPS[name]
    samples = SAMPLES // 4 if setup.ahead else SAMPLES  # those take twice as long each
    written = write(setup, range(samples))
    assert fits(fit(written.outputs, exact(setup.target, setup.sampling)))
    # All that could go wrong did happen: drafts wrong and right, ends within a block.
    assert 0.1 < written.num_accepted_tokens / written.num_draft_tokens < 0.9
    assert 0.1 < sum(output[-1] == EOS for output in written.outputs) / samples < 0.9
    if setup.ahead:
        assert min(written.num_hits, written.num_overtaken) > 0.05 * samples


def test_the_comparison_notices_a_distribution_slightly_off() -> None:
    """A target warmer by 6 %: by this much the test is finer than the faults it is for."""
    warmer = SamplingParams(temperature=1.06 * COUPLED.sampling.temperature)
    written = write(replace(COUPLED, sampling=warmer), range(SAMPLES // 2))
    assert not fits(fit(written.outputs, exact(TARGET, COUPLED.sampling)))


# --- planted errors ------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def residual_not_renormalised(patch: pytest.MonkeyPatch) -> None:
    """Draws by the cumulated residual as it is; what lacks to 1 falls to the last token."""

    def faulty(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
        excess = (target_probs - draft_probs).clamp(min=0)
        excess[:, -1] += 1 - excess.sum(-1)
        return excess

    patch.setattr(acceptance, "_excess", faulty)


def bonus_from_the_wrong_row(patch: pytest.MonkeyPatch) -> None:
    """Takes the token after a draft accepted whole from the row that judged its last guess."""
    count = acceptance._count

    def faulty(checks: Sequence[Check], stands: Any) -> list[tuple[int, int]]:
        return [
            (accepted, row - (0 < accepted == len(check.guesses)))
            for check, (accepted, row) in zip(checks, count(checks, stands), strict=True)
        ]

    patch.setattr(acceptance, "_count", faulty)


def noise_reused_across_positions(patch: pytest.MonkeyPatch) -> None:
    """Draws two neighbouring tokens with the same noise, on both ends alike."""

    def faulty(
        scores: Tensor, seeds: Sequence[int], positions: Sequence[int], stream: Stream
    ) -> list[int]:
        return gumbel_argmax(scores, seeds, [position // 2 for position in positions], stream)

    for module in (sampling, acceptance):
        patch.setattr(module, "gumbel_argmax", faulty)


def top_p_keeps_the_tail(patch: pytest.MonkeyPatch) -> None:
    """Cuts from the likeliest downwards what should have stayed."""

    def faulty(scores: Tensor, top_p: float) -> Tensor:
        ascending, order = scores.sort()
        cut = ascending.softmax(-1).cumsum(-1) > top_p
        cut[:, 0] = False
        cut |= ascending == -torch.inf
        return scores.masked_fill(cut.scatter(1, order, cut), -torch.inf)

    patch.setattr(sampling, "_keep_head", faulty)


def position_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Takes the place of a draft's last guess for that of the token after it."""
    each_row = acceptance._each_row

    def faulty(checks: Sequence[Check]) -> tuple[list[Context], list[SamplingParams]]:
        contexts, params = each_row(checks)
        end = 0
        for check in checks:
            end += check.num_rows
            if check.guesses:
                last = contexts[end - 1]
                contexts[end - 1] = replace(last, length=last.length - 1)
        return contexts, params

    patch.setattr(acceptance, "_each_row", faulty)


def draft_probabilities_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """Holds against each guess what the guess before it was drawn from."""
    draft_probs = acceptance._draft_probs

    def faulty(checks: Sequence[Check], like: Tensor) -> Tensor:
        return draft_probs(checks, like).roll(1, 0)

    patch.setattr(acceptance, "_draft_probs", faulty)


COUPLED_AND_CUT = replace(COUPLED, sampling=SamplingParams(temperature=1.0, top_p=0.7))
FAULTS: list[tuple[Plant, Setup]] = [
    (residual_not_renormalised, REJECTED),
    (bonus_from_the_wrong_row, COUPLED),
    (bonus_from_the_wrong_row, REJECTED),
    (noise_reused_across_positions, COUPLED),
    (top_p_keeps_the_tail, COUPLED_AND_CUT),
    (position_off_by_one, COUPLED),
    (draft_probabilities_off_by_one, REJECTED),
]


@pytest.mark.parametrize(
    ("plant", "setup"),
    FAULTS,
    ids=[f"{plant.__name__}, {setup.verification.mode.value}" for plant, setup in FAULTS],
)
def test_a_planted_error_is_caught(
    plant: Plant, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    written = write(setup, range(SAMPLES_OF_A_FAULT))
    assert not fits(fit(written.outputs, exact(setup.target, setup.sampling)))


@pytest.mark.parametrize("setup", [COUPLED, REJECTED, COUPLED_AND_CUT], ids=["c", "r", "cut"])
def test_without_one_the_same_samples_fit(setup: Setup) -> None:
    written = write(setup, range(SAMPLES_OF_A_FAULT))
    assert fits(fit(written.outputs, exact(setup.target, setup.sampling)))
