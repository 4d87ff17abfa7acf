"""What the arms did on each category."""

from __future__ import annotations

import pytest

from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.categories import by_category
from edge_client.experiments.records import error_record
from tests.unit.experiments.fakes import unit
from tests.unit.experiments.test_report import made


def test_each_category_has_its_own_numbers() -> None:
    records = {
        "cloud": [made("cloud", p, ms, 1, 2, category=c) for p, c, ms in PROMPTS],
        "speculative": [made("speculative", p, ms / 2, 1, 2, category=c) for p, c, ms in PROMPTS]
        + [error_record(unit("speculative", "c", category="maths"), None, "gone")],
    }
    told = by_category(records, Bootstrap(1))
    assert list(told) == ["maths", "prose"]
    assert (told["maths"]["prompts"], told["prose"]["prompts"]) == (3, 1)
    maths = told["maths"]["arms"]
    assert maths["cloud"]["tokens_per_s"]["value"] == pytest.approx(4 / 0.03)
    assert maths["cloud"]["acceptance_rate"] is None
    assert maths["speculative"]["acceptance_rate"]["value"] == 0.25
    assert (maths["speculative"]["records"], maths["speculative"]["errors"]) == (3, 1)
    assert told["maths"]["ratios"]["speculative"]["cloud"]["value"] == pytest.approx(2)
    assert told["prose"]["ratios"]["cloud"]["speculative"] == {"value": 0.5, "ci95": None}


def test_prompts_without_a_category_make_none() -> None:
    assert by_category({"cloud": [made("cloud", "p", 5, 1)]}, Bootstrap(1)) == {}


PROMPTS = [("a", "maths", 10), ("b", "maths", 20), ("d", "prose", 5), ("e", None, 5)]
