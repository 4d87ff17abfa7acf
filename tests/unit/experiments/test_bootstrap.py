from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.experiments.bootstrap import Bootstrap, Estimate, _weighted_quantiles

GROUPS = st.lists(
    st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(groups=GROUPS, fractions=st.lists(st.floats(0, 1), min_size=1, max_size=3), data=st.data())
def test_weighted_quantiles_are_numpys_on_the_repeated_sample(
    groups: list[list[float]], fractions: list[float], data: st.DataObject
) -> None:
    counts = data.draw(
        st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)).filter(any)
    )
    values = np.concatenate([np.asarray(group) for group in groups])
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    found = _weighted_quantiles(
        values[order], owners[order], np.asarray([counts], float), fractions
    )
    repeated = np.concatenate([group * count for group, count in zip(groups, counts, strict=True)])
    expected = np.percentile(repeated, [100 * fraction for fraction in fractions])
    assert found[0] == pytest.approx(expected, abs=1e-9)


def test_values_are_the_plain_ones() -> None:
    bootstrap = Bootstrap(1)
    ratio = bootstrap.ratio_of_sums([1, 2, 3], [2, 2, 2])
    assert ratio is not None
    assert ratio.value == 1.0
    assert ratio.low is not None
    assert ratio.high is not None
    assert 0.5 <= ratio.low < 1.0 < ratio.high <= 1.5
    quantiles = bootstrap.quantiles([[3.0], [1.0, 2.0]], (0.5, 1.0))
    assert quantiles is not None
    assert [q.value for q in quantiles] == [2.0, 3.0]
    middle = bootstrap.geometric_mean([0.5, 2.0])
    assert middle is not None
    assert middle.value == pytest.approx(1.0)


def test_prompts_are_drawn_whole() -> None:
    """A hundred readings of two prompts are two observations, not a hundred."""
    quantiles = Bootstrap(1).quantiles([[1.0] * 50, [2.0] * 50], (0.5,))
    assert quantiles == (Estimate(1.5, 1.0, 2.0),)


def test_one_prompt_has_no_interval() -> None:
    bootstrap = Bootstrap(1)
    assert bootstrap.mean([4.0]) == Estimate(4.0, None, None)
    assert Estimate(4.0, None, None).to_json() == {"value": 4.0, "ci95": None}
    assert Estimate(4.0, 3.0, 5.0).to_json() == {"value": 4.0, "ci95": [3.0, 5.0]}


def test_nothing_has_no_estimate() -> None:
    bootstrap = Bootstrap(1)
    assert bootstrap.mean([]) is None
    assert bootstrap.geometric_mean([]) is None
    assert bootstrap.quantiles([[], []], (0.5,)) is None
    assert bootstrap.ratio_of_sums([1, 2], [0, 0]) is None


def test_the_seed_decides() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert Bootstrap(1).mean(values) == Bootstrap(1).mean(values)
    assert Bootstrap(1).mean(values) != Bootstrap(2).mean(values)


def test_blocks_of_resamples_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [[float(i), float(i * i)] for i in range(9)]
    whole = Bootstrap(3).quantiles(groups, (0.5, 0.95))
    monkeypatch.setattr("edge_client.experiments.bootstrap._CELLS_AT_ONCE", 100)
    assert Bootstrap(3).quantiles(groups, (0.5, 0.95)) == whole


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        interval = Bootstrap(seed, resamples=400).mean(generator.normal(3.0, 1.0, 40).tolist())
        assert interval is not None
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 3.0 <= interval.high
    assert 175 <= covered <= 199
