"""How far a run is: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

_LINE_EVERY_NS = 15_000_000_000


class Progress:
    """Shows how many of `total` are done, `what` being counted; a context manager.

    `clock` returns nanoseconds; a line is written at most every fifteen seconds,
    and at the end. What was `done` before says nothing of the time left.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO,
        clock: Callable[[], int],
        what: str = "generations",
        done: int = 0,
    ) -> None:
        self._total = total
        self._what = what
        self._stream = stream
        self._clock = clock
        self._done = self._earlier = done
        self._started = self._told = clock()
        self._bar: tqdm[Any] | None = None
        if stream.isatty():
            shown: dict[str, Any] = {"file": stream, "unit": "gen", "dynamic_ncols": True}
            self._bar = tqdm(total=total, initial=done, leave=False, **shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, what: str) -> None:
        """Says what runs now; only a bar shows it."""
        if self._bar is not None:
            self._bar.set_description(what)

    def advance(self) -> None:
        """Counts one more."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            return
        now = self._clock()
        if now - self._told >= _LINE_EVERY_NS or self._done == self._total:
            self._told = now
            left = (now - self._started) / (self._done - self._earlier) * (self._total - self._done)
            rest = f"about {duration(left)} left" if left else "done"
            line = f"bench: {self._done}/{self._total} {self._what}, {rest}"
            print(line, file=self._stream, flush=True)


def duration(nanoseconds: float) -> str:
    """Returns a duration as people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(nanoseconds / 1e9)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
