"""Many clients at once: when their requests are due, and the records of what became of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from edge_client.experiments.execution import Execution
from edge_client.experiments.prompts import Prompt
from edge_client.experiments.records import Record


def poisson_arrivals(rate: float, count: int, seed: int) -> tuple[int, ...]:
    """Returns when `count` requests are due, in ns from the beginning: `rate` a second on average.

    Gaps are exponential, which makes the arrivals a Poisson process.
    """
    generator = random.Random(seed)
    seconds = accumulate(generator.expovariate(rate) for _ in range(count))
    return tuple(round(second * 1e9) for second in seconds)


@dataclass(frozen=True, slots=True)
class Request:
    """Is one conversation: `due_ns` from the beginning, None as soon as a client is free."""

    prompt: Prompt
    repeat: int
    order: int
    due_ns: int | None


def requests(
    prompts: Sequence[Prompt], count: int, arrivals: Sequence[int] | None
) -> Iterator[Request]:
    """Yields `count` conversations, the prompts over and over."""
    order = 0
    for index in range(count):
        prompt = prompts[index % len(prompts)]
        due = None if arrivals is None else arrivals[index]
        yield Request(prompt, index // len(prompts), order, due)
        order += len(prompt.turns)


@dataclass(slots=True)
class Load:
    """Runs requests by several clients; each takes the next one when it is free.

    `clock` returns nanoseconds of one monotonic clock; `wait` sleeps for seconds, or less
    when `stopped` is set; `tell` hears of every record, one at a time.
    """

    clients: Sequence[Execution]
    arm: str
    waiting: Iterator[Request]
    clock: Callable[[], int]
    tell: Callable[[Record], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    wait: Callable[[float], object] | None = None
    failure: BaseException | None = None
    most_at_once: int = 0
    started: int = 0
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> int:
        """Runs them all; returns how long it took, in ns. Raises what is no error of a server's.

        Ctrl-C stops it after the generations in hand, and is raised again.
        """
        began = self.clock()
        threads = [
            threading.Thread(target=self._client, args=(client, began), name=f"client-{number}")
            for number, client in enumerate(self.clients)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self.stopped.set()
            for thread in threads:
                thread.join()
            raise
        if self.failure is not None:
            raise self.failure
        return self.clock() - began

    def _client(self, client: Execution, began: int) -> None:
        try:
            while (request := self._next()) is not None:
                arrived = None if request.due_ns is None else began + request.due_ns
                if arrived is not None:
                    (self.wait or self.stopped.wait)(max(0, arrived - self.clock()) / 1e9)
                if self.stopped.is_set():
                    return
                self._converse(client, request, began, arrived)
        except BaseException as error:
            self.failure = error
            self.stopped.set()

    def _converse(
        self, client: Execution, request: Request, began: int, arrived: int | None
    ) -> None:
        with self._lock:
            self.started += 1
            self._busy += 1
            self.most_at_once = max(self.most_at_once, self._busy)
        try:
            place = (request.prompt, self.arm, request.repeat, request.order, began)
            for record in client.conversation(*place, arrived=arrived):
                with self._lock:
                    self.tell(record)
        finally:
            with self._lock:
                self._busy -= 1

    def _next(self) -> Request | None:
        with self._lock:
            return None if self.stopped.is_set() else next(self.waiting, None)
