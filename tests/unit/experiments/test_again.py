"""One arm under two names comes out as one arm."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.types import SamplingParams, StopParams
from edge_client.experiments.again import Again, kind_of
from edge_client.experiments.figures import self_check_line
from edge_client.experiments.machine_watch import Reading
from edge_client.experiments.runner import BenchPlan, BenchResult, run_bench
from tests.unit.experiments.fakes import FakeArm, FakeClock, FakeEncoder, streamed
from tests.unit.experiments.test_runner import END


def bench(
    folder: Path, *, drift: float = 0.0, slower: float = 1.0, prompts: int = 24
) -> BenchResult:
    """Runs an arm whose speed varies at random, and drifts with time, under two names."""
    clock, chance, told = FakeClock(), random.Random(1), iter(range(10_000))
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(f'{{"prompt": "a {i}"}}' for i in range(prompts)))

    def play(factor: float) -> FakeArm:
        def script(_: object) -> list[tuple[float, object]]:
            took = 10 * factor * chance.uniform(0.8, 1.2) * (1 + drift * next(told))
            return [(took, streamed(1)), (took, streamed(2, end=END))]

        return FakeArm("cloud", clock, script)  # type: ignore[arg-type]

    return run_bench(
        BenchPlan(file, SamplingParams(seed=3), StopParams(max_new_tokens=2), folder / "out"),
        [play(1), Again(play(slower))],
        FakeEncoder(),
        context_length=10,
        draft_dtype="float32",
        target_dtype="float32",
        environment={},
        machine=lambda: Reading(2),
        clock=clock,
    )


@pytest.mark.parametrize("drift", [0.0, 0.02])
def test_nothing_is_found_where_nothing_is(tmp_path: Path, drift: float) -> None:
    """Not even where the machine grows slower all the while: both names stand in every place."""
    result = bench(tmp_path, drift=drift)
    (check,) = result.summary["self_checks"]
    assert (check["arm"], check["again"], check["prompts"]) == ("cloud", "cloud_again", 24)
    assert check["covers_1"] is True
    assert self_check_line(check).endswith("no difference, as it must be")
    assert "self-check: cloud_again wrote" in result.table
    assert {r["draft_dtype"] for r in result.summary["arms"].values()} == {None}


def test_a_difference_is_found(tmp_path: Path) -> None:
    (check,) = bench(tmp_path, slower=1.3).summary["self_checks"]
    assert check["covers_1"] is False
    assert "a difference where there is none" in self_check_line(check)


def test_one_prompt_decides_nothing(tmp_path: Path) -> None:
    (check,) = bench(tmp_path, prompts=1).summary["self_checks"]
    assert check["covers_1"] is None
    assert "too few for an interval" in self_check_line(check)


def test_both_names_are_one_arm() -> None:
    assert kind_of("speculative_again") == kind_of("speculative") == "speculative"
