"""How near a text comes to another: chrF and BLEU by sacrebleu, ROUGE-L by rouge-score.

Both libraries are optional. They are imported when they are first wanted, and their
absence is said once instead of raised: `pip install 'outrider[quality]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

OFF = "quality metrics are off: pip install 'outrider[quality]'"


@dataclass(frozen=True, slots=True)
class Quality:
    """Is how near a text comes to its references, each from 0 to 100."""

    chrf: float | None = None
    bleu: float | None = None
    rouge_l: float | None = None


class QualityMetrics:
    """Compares texts; see load_metrics."""

    def __init__(self, chrf: CHRF, bleu: BLEU, rouge: RougeScorer) -> None:
        self._chrf = chrf
        self._bleu = bleu
        self._rouge = rouge

    def against(self, text: str, references: Sequence[str]) -> Quality:
        """Returns how near `text` comes to the references, of which the nearest counts.

        Nothing can be said where no reference has a word.
        """
        references = [reference for reference in references if reference.strip()]
        if not references:
            return Quality()
        return Quality(
            chrf=self._chrf.sentence_score(text, references).score,
            bleu=self._bleu.sentence_score(text, references).score,
            rouge_l=100 * self._rouge.score_multi(references, text)["rougeL"].fmeasure,
        )


def load_metrics() -> QualityMetrics | None:
    """Imports the libraries; None where they are not installed.

    chrF: character n-grams to 6, beta 2 (Popović 2015). BLEU: of a sentence, with
    the orders it is long enough for. ROUGE-L: F1 of the longest common subsequence
    of words, no stemming (Lin 2004).
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        return None
    return QualityMetrics(CHRF(), BLEU(effective_order=True), RougeScorer(["rougeL"]))
