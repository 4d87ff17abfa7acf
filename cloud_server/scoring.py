"""Scores: what the target thinks after a context, a forward at a time between two steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch

from cloud_server.jobs import TOO_LATE, Failed, as_ours
from common.errors import DeadlineError, OutriderError
from common.lm.runner import LanguageModel, Segment

SCORED_CHUNK = 64
"""Tokens of a text to be scored that one forward takes: the logits of each are wanted at once."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers what the target thinks after a context.

    `logits` has one entry a candidate, `text_logprobs` one a token of the text, in nats.
    """

    logits: tuple[float, ...]
    text_logprobs: tuple[float, ...]


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
        logprobs: list[float] = []
        with self._model.cache.session(len(context) + len(text)) as session:
            for start in range(0, len(context), self._prefill_chunk):
                chunk = context[start : start + self._prefill_chunk]
                logits = self._model.forward([Segment(session, chunk, start, 1)])
                yield
            after = logits  # of each token of the text, what stood before it said
            for start in range(0, len(text), SCORED_CHUNK):
                chunk = text[start : start + SCORED_CHUNK]
                place = len(context) + start
                rows = self._model.forward([Segment(session, chunk, place, len(chunk))])
                given = torch.cat([after, rows[:-1]]).double().log_softmax(-1)
                wanted = torch.tensor(chunk, device=given.device)[:, None]
                logprobs += given.gather(1, wanted)[:, 0].tolist()
                after = rows[-1:]
                yield
        return Scores(tuple(logits[0, list(scoring.candidates)].tolist()), tuple(logprobs))
