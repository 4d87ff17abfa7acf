"""The rule a text was verified by, in the words of records, warnings and reports.

What the rule does is decided elsewhere (cloud_server/acceptance.py, and the gate on
the edge); here is what it promises of the text, so that nothing lossy goes unlabelled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.config import Config
from common.types import COLDEST, VerificationMode


class Promise(enum.Enum):
    """Says what the text of an arm has in common with the target's own."""

    TOKENS = "tokens"  # every token of it
    DISTRIBUTION = "distribution"  # another draw from the same distribution


@dataclass(frozen=True, slots=True)
class Rule:
    """Is how drafted tokens become output; a number that mode or gate does not use is None.

    `gate` None means that the cloud is asked about every block.
    """

    mode: str = VerificationMode.COUPLED.value
    rank_threshold: int | None = None
    typical_threshold: float | None = None
    typical_alpha: float | None = None
    candidates: int | None = None
    gate: str | None = None
    gate_threshold: float | None = None

    @property
    def lossless(self) -> bool:
        """Whether the text has the target's own distribution."""
        return VerificationMode(self.mode).lossless and self.gate is None

    def promise(self, temperature: float) -> Promise | None:
        """Returns what a text by this rule promises; None when it is lossy."""
        if not self.lossless:
            return None
        if self.mode == VerificationMode.REJECTION.value and temperature >= COLDEST:
            return Promise.DISTRIBUTION
        return Promise.TOKENS

    @property
    def verified_by(self) -> str:
        """By what a drafted token passes, in words."""
        if self.mode == VerificationMode.RANK.value:
            return f"rank <= {self.rank_threshold}"
        if self.mode == VerificationMode.TYPICAL.value:
            return (
                f"typical acceptance (threshold {self.typical_threshold:g}, "
                f"alpha {self.typical_alpha:g})"
            )
        return self.mode

    @property
    def gated_by(self) -> str | None:
        """When a block is committed without asking, in words; None when none is."""
        if self.gate is None:
            return None
        sign, unit = _GATES[self.gate]
        return f"{self.gate} {sign} {self.gate_threshold:g}{unit}"

    @property
    def losses(self) -> tuple[str, ...]:
        """What makes the text another than the target's, as predicates; none when nothing does."""
        gated = () if self.gate is None else (f"commits tokens without asking ({self.gated_by})",)
        return self.mode_losses + gated

    @property
    def mode_losses(self) -> tuple[str, ...]:
        """Those of the mode alone, which do not depend on how often the gate let pass."""
        if VerificationMode(self.mode).lossless:
            return ()
        return (f"verified by {self.verified_by}: its text is not the target's own",)


EXACT = Rule()
"""The rule where nothing is configured: a guess passes while it is the target's own choice."""

_GATES = {"entropy": ("<=", " nats"), "margin": (">=", ""), "logprob": (">=", " nats")}


def rule_of(config: Config) -> Rule:
    """Returns the rule that a configuration asks for."""
    mode, gate = config.verification.mode, config.gate
    typical = mode == VerificationMode.TYPICAL.value
    return Rule(
        mode=mode,
        rank_threshold=(
            config.verification.rank_threshold if mode == VerificationMode.RANK.value else None
        ),
        typical_threshold=config.verification.typical_threshold if typical else None,
        typical_alpha=config.verification.typical_alpha if typical else None,
        candidates=(
            config.drafting.candidates if mode == VerificationMode.REJECTION.value else None
        ),
        gate=None if gate.kind == "none" else gate.kind,
        gate_threshold=None if gate.kind == "none" else gate.threshold,
    )
