"""The check of the measurement itself: one arm under two names must come out alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_client.arms import Arm, GenerationRequest
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.comparison import ratios
from edge_client.experiments.records import Record
from edge_client.steps import Step

SUFFIX = "_again"


@dataclass(frozen=True, slots=True)
class Again:
    """Is an arm under a second name."""

    arm: Arm

    @property
    def name(self) -> str:
        """The arm's name and the suffix."""
        return self.arm.name + SUFFIX

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        """Yields what the arm yields."""
        return self.arm.run(request)


def kind_of(name: str) -> str:
    """Returns what an arm is, whichever of its names is given."""
    return name.removesuffix(SUFFIX)


def self_checks(
    records: Mapping[str, Sequence[Record]], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Returns, for every arm that ran under two names, the ratio of the second to the first.

    `covers_1` is None where too few prompts leave no interval.
    """
    checks = []
    for again in (name for name in records if name.endswith(SUFFIX)):
        arm = kind_of(again)
        compared = ratios({arm: records[arm], again: records[again]}, bootstrap)[again][arm]
        if compared["tokens_per_s"] is None:
            continue
        median = compared["tokens_per_s"]["median"]
        bounds = median["ci95"]
        checks.append(
            {
                "arm": arm,
                "again": again,
                "prompts": compared["prompts"],
                "tokens_per_s": median,
                "covers_1": None if bounds is None else bounds[0] <= 1 <= bounds[1],
            }
        )
    return checks
