"""Nearness of texts: the libraries' own numbers, and their absence said clearly."""

from __future__ import annotations

import sys

import pytest

from edge_client.experiments.quality import Quality, QualityMetrics, load_metrics

TEXT = "The cat sat on the mat."


@pytest.fixture(scope="module")
def metrics() -> QualityMetrics:
    loaded = load_metrics()
    assert loaded is not None
    return loaded


def test_equal_texts_are_at_the_top_and_others_below(metrics: QualityMetrics) -> None:
    same = metrics.against(TEXT, [TEXT])
    assert (same.chrf, same.bleu, same.rouge_l) == pytest.approx((100, 100, 100))
    other = metrics.against("The dog sat on the mat.", [TEXT])
    for value in (other.chrf, other.bleu, other.rouge_l):
        assert value is not None
        assert 0 < value < 100
    none = metrics.against("quux", [TEXT])
    assert none.rouge_l == 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(metrics: QualityMetrics) -> None:
    found = metrics.against("the big cat sat", ["the cat slept here today"])
    precision, recall = 2 / 4, 2 / 5  # "the cat"
    assert found.rouge_l == pytest.approx(100 * 2 * precision * recall / (precision + recall))


def test_the_nearest_of_several_references_counts(metrics: QualityMetrics) -> None:
    found = metrics.against(TEXT, ["Something else entirely", TEXT])
    assert (found.chrf, found.rouge_l) == pytest.approx((100, 100))


def test_a_reference_without_a_word_says_nothing(metrics: QualityMetrics) -> None:
    assert metrics.against(TEXT, ["", " \n"]) == Quality()
    assert metrics.against("", [TEXT]).chrf == 0


@pytest.mark.parametrize("missing", ["sacrebleu.metrics.bleu", "rouge_score.rouge_scorer"])
def test_without_the_libraries_there_are_no_metrics(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert load_metrics() is None
