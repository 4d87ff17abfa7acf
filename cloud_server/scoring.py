"""Scores: what the target thinks after a context, a forward at a time between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from cloud_server.jobs import TOO_LATE, Failed, as_ours
from common.errors import DeadlineError, OutriderError
from common.lm.opinion import opinion_steps
from common.lm.runner import LanguageModel
from common.types import Opinion


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers what the target thinks after a context.

    `logits` has one entry a candidate, `opinion` says what it thinks of each token of the text.
    """

    logits: tuple[float, ...]
    opinion: Opinion


@dataclass(frozen=True, slots=True)
class Scoring:
    """Asks for scores; once `unwanted` is set, or from `deadline_ns` on, nothing more is run."""

    context: Sequence[int]
    candidates: Sequence[int]
    text: Sequence[int]
    then: Callable[[Scores], None]
    failed: Failed
    deadline_ns: int | None = None
    unwanted: threading.Event = field(default_factory=threading.Event)


class Scorings:
    """Runs scorings in turn, one forward of each; belongs to the engine thread."""

    def __init__(self, model: LanguageModel, prefill_chunk: int) -> None:
        self._model = model
        self._prefill_chunk = prefill_chunk
        self._waiting: deque[tuple[Scoring, Generator[None, None, Scores]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, scoring: Scoring) -> None:
        """Puts one behind the others."""
        self._waiting.append((scoring, self._steps(scoring)))

    def step(self, now: int) -> None:
        """Runs one forward of the oldest, and puts it behind the others or answers it."""
        scoring, steps = self._waiting.popleft()
        try:
            if scoring.unwanted.is_set() or (scoring.deadline_ns or now + 1) <= now:
                steps.close()
                raise DeadlineError(TOO_LATE)
            next(steps)
        except StopIteration as ended:
            scoring.then(ended.value)
        except Exception as error:  # whatever a model raises fails this one, never the engine
            scoring.failed(as_ours(error))
        else:
            self._waiting.append((scoring, steps))

    def fail(self, error: OutriderError) -> None:
        """Ends all of them."""
        for scoring, steps in self._waiting:
            steps.close()
            scoring.failed(error)
        self._waiting.clear()

    def _steps(self, scoring: Scoring) -> Generator[None, None, Scores]:
        """Yields after each forward."""
        context, text = scoring.context, scoring.text
        with self._model.cache.session(len(context) + len(text)) as session:
            logits, opinion = yield from opinion_steps(
                self._model, session, context, text, self._prefill_chunk
            )
        return Scores(tuple(logits[0, list(scoring.candidates)].tolist()), opinion)
