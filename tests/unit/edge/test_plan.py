"""The command `plan`: what it prints and draws, what it takes from where, what it refuses."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from edge_client.cli import main
from edge_client.expectation import Situation, tokens_a_second
from tests.unit.experiments.test_calibration import cloud, edge, speculative, written

GIVEN = ["--draft-ms", "2", "--target-ms", "8", "--target-token-ms", "0.5", "--acceptance", "0.8"]


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["plan", *argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_given_numbers_are_enough_and_come_out_as_the_closed_form_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = planned(capsys, *GIVEN, "--rtt-ms", "50,0,50", "--lengths", "4,1")
    assert (found["text_tokens"], found["measured_rtt_ms"], found["notes"]) == (None, None, [])
    (one,) = found["forecasts"]
    assert [there["rtt_ms"] for there in one["rtts"]] == [0, 50]
    there = one["rtts"][1]
    situation = Situation(2e-3, 50e-3, 8e-3, 0.5e-3, (0.8,))
    assert [by["waiting"]["draft_length"] for by in there["lengths"]] == [1, 4]
    for by in there["lengths"]:
        for offer in by.values():
            assert offer["tokens_per_s"] == pytest.approx(
                tokens_a_second(situation, offer["draft_length"], offer["drafts_ahead"])
            )
    arms = there["arms"]
    assert arms["edge"]["tokens_per_s"] == pytest.approx(500)
    assert arms["edge"]["clients"] is None
    assert arms["cloud_optimized"]["tokens_per_s"] == pytest.approx(1000 / 8.5)
    assert arms["cloud_optimized"]["clients"] == pytest.approx(1)
    waiting = arms["speculative_waiting"]
    assert waiting["target_forwards_per_token"] == pytest.approx(1 / 3.3616)
    assert waiting["target_ms_per_token"] == pytest.approx(10.5 / 3.3616)
    assert waiting["clients"] == pytest.approx(1000 / (10.5 / 3.3616) / waiting["tokens_per_s"])
    best = max((offer for by in there["lengths"] for offer in by.values()), key=rate)
    assert there["best_set"] == [
        f"drafting.length={best['draft_length']}",
        f"network.pipeline={best['drafts_ahead']}",
    ]
    assert there["pays"] is (rate(best) >= rate(arms["cloud_optimized"]))
    assert one["break_even"] == "at"
    (even,) = planned(
        capsys, *GIVEN, "--rtt-ms", repr(one["break_even_rtt_ms"]), "--lengths", "4,1"
    )["forecasts"]
    assert max(rate(by[k]) for by in even["rtts"][0]["lengths"] for k in by) == pytest.approx(
        rate(arms["cloud_optimized"]), rel=1e-4
    )


def rate(offer: dict[str, Any]) -> float:
    return float(offer["tokens_per_s"])


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*GIVEN, "--rtt-ms", "0,500", "--lengths", "2,4"]
    (one,) = planned(capsys, *argv)["forecasts"]
    assert main(["plan", *argv]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    for there in one["rtts"]:
        start = next(i for i, row in enumerate(rows) if row[:2] == [f"{there['rtt_ms']:g}", "edge"])
        waiting = there["arms"]["speculative_waiting"]
        assert rows[start + 2][2] == str(waiting["draft_length"])
        speed = float(rows[start + 2][4].replace(",", ""))
        assert speed == pytest.approx(rate(waiting), rel=0.01)
        said = " ".join(f"--set {flag}" for flag in there["best_set"])
        assert f"best at {there['rtt_ms']:g} ms: " in out
        assert said in out
    assert one["sentence"] in " ".join(out.split())
    assert "best at 500 ms: cloud_optimized; of speculative --set " in out
    assert "each request in a forward of its own" in out
    assert "texts without an end" in out


def test_records_are_enough_and_what_is_given_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--records", str(written(tmp_path, speculative(), edge(), cloud()))]
    measured = planned(capsys, *records)
    (one,) = measured["forecasts"]
    assert measured["text_tokens"] == 9
    assert measured["measured_rtt_ms"] == pytest.approx(23)
    assert [one["draft_ms"], one["target_ms"], one["edge_round_ms"]] == pytest.approx([2, 5, 3])
    assert len(one["acceptance_by_position"]) == 4
    assert any(there["rtt_ms"] == pytest.approx(23) for there in one["rtts"])
    (changed,) = planned(
        capsys, *records, "--draft-ms", "7", "--acceptance", "0.5", "--tokens", "80"
    )["forecasts"]
    assert changed["draft_ms"] == pytest.approx(7)
    assert changed["acceptance_by_position"] == [0.5]
    assert changed["target_ms"] == one["target_ms"]

    def alone_ms(*more: str) -> float:
        found = planned(capsys, *records, "--rtt-ms", "0", "--tokens", "100000", *more)
        return 1e3 / rate(found["forecasts"][0]["rtts"][0]["arms"]["cloud_optimized"])

    assert alone_ms() == pytest.approx(7, rel=1e-3)  # as it was measured
    assert alone_ms("--target-ms", "50") == pytest.approx(51.5, rel=1e-3)


@pytest.mark.parametrize("acceptance", ["0.8", "0.5,0.9"])
def test_a_heat_map_is_drawn_as_a_page_or_a_picture(
    acceptance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", *GIVEN, "--acceptance", acceptance, "--rtt-ms", "0,500", "--lengths", "2,4"]
    for name in ("map.svg", "map.html"):
        assert main([*argv, "--out", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / name)
    picture = ElementTree.parse(tmp_path / "map.svg").getroot()
    cells = list(picture.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(cells) == 4  # two round trips, two draft lengths or two acceptances
    faster = [cell.attrib["class"] for cell in cells]
    assert faster == 2 * ["arm-speculative"] + 2 * ["arm-cloud_optimized"]
    assert all("tokens/s" in (cell[0].text or "") for cell in cells)
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert page.count("<svg") == (1 if acceptance == "0.8" else 3)
    assert "Splitting pays up to" in page
    assert not re.search(r"<script|href=|url\(", page)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--draft-ms", "fast"], "--draft-ms 'fast' is not a number"),
        (["--draft-ms", "-1"], "--draft-ms '-1' is not a number of at least 0"),
        (["--draft-ms", "1,2"], "--draft-ms '1,2' is not a number"),
        (["--draft-ms", "0"], "--draft-ms 0: a draft takes time"),
        (["--target-ms", "nan"], "--target-ms 'nan' is not a number"),
        (["--target-ms", "0", "--target-token-ms", "0"], "--target-ms 0: a target takes time"),
        (["--target-token-ms", "inf"], "--target-token-ms 'inf' is not a number"),
        (["--acceptance", "0.5,1.5"], "--acceptance 1.5: no more than all guesses stand"),
        (["--acceptance", "0.5,"], "--acceptance '' is not a number"),
        (["--rtt-ms", "1;2"], "--rtt-ms '1;2' is not a number"),
        (["--lengths", "2,x"], "--lengths 'x': a draft has 0 to 32 tokens"),
        (["--lengths", "33"], "--lengths '33': a draft has 0 to 32 tokens"),
        (["--tokens", "0"], "--tokens '0' is not a whole number of at least 1"),
        (["--out", "map.png"], "--out map.png: the heat map is an .html or an .svg"),
        (["--out", "/no/such/map.svg"], "--out /no/such/map.svg cannot be written"),
        (["--records", "/no/such/run"], "--records /no/such/run: No such file"),
    ],
)
def test_what_cannot_be_planned_is_exit_2_and_one_line(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *GIVEN, *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert message in said.err


@pytest.mark.parametrize(
    ("argv", "lacking"),
    [
        ([], "--draft-ms, --target-ms, --acceptance"),
        (["--draft-ms", "1", "--target-ms", "2"], "--acceptance"),
    ],
)
def test_what_nothing_says_is_named(
    argv: list[str], lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *argv]) == 2
    assert f"nothing says {lacking}; give it, or --records" in capsys.readouterr().err


def test_records_without_the_split_arm_still_lack_acceptance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--records", str(written(tmp_path, cloud(), edge()))]) == 2
    assert "nothing says --acceptance" in capsys.readouterr().err
