"""The idle link, timed by Echo at the sizes that messages really have, again and again in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from common.errors import OutriderError
from edge_client.experiments.columns import StepColumns
from edge_client.experiments.records import percentiles

Echo = Callable[[bytes], object]
"""Makes one round trip with a payload."""

COUNT = 20
COUNT_BETWEEN = 10  # at each quarter of a run: a long link must not cost it minutes
_WARM_UP = 3
_GRPC_HEADER = 5
_REQUEST, _RESPONSE = "request", "response"


class IdleLink:
    """Measures round trips while nothing else is under way; without an `echo` it does nothing."""

    def __init__(self, echo: Echo | None, clock: Callable[[], int]) -> None:
        self._echo = echo
        self._clock = clock
        self._started_ns = clock()
        self._rounds = _Sizes()
        self._streamed = _Sizes()
        self._samples: list[dict[str, Any]] = []

    def note(self, steps: StepColumns | None) -> None:
        """Takes note of how large the messages of a generation were."""
        if steps is None or steps.bytes_up is None or steps.bytes_down is None:
            return
        sizes = self._streamed if steps.asked is None else self._rounds
        requests = [size for size in steps.bytes_up if size]
        responses = [size for size in steps.bytes_down if size]
        # A session's opening counts with its first round.
        sizes.requests += requests[1:] or requests
        sizes.responses += responses[1:] or responses

    def measure(self, when: str, count: int = COUNT) -> None:
        """Makes `count` round trips of the median request's size, then of the median response's."""
        if self._echo is None:
            return
        seen = self._rounds if self._rounds.requests else self._streamed
        for of, sizes in ((_REQUEST, seen.requests), (_RESPONSE, seen.responses)):
            size = round(median(sizes)) if sizes else 0
            payload = payload_bytes(size)
            at_s = (self._clock() - self._started_ns) / 1e9
            told = measure_idle_rtt(self._echo, self._clock, count, payload)
            if told is None:
                return
            said = {"when": when, "of": of, "at_s": at_s, "message_bytes": size}
            self._samples.append(said | {"payload_bytes": payload} | told)

    def told(self) -> dict[str, Any] | None:
        """Returns all samples, the first and the last of a request's size, and how they drifted."""
        if self._echo is None:
            return None

        def first(when: str) -> dict[str, Any] | None:
            found = (s for s in self._samples if (s["when"], s["of"]) == (when, _REQUEST))
            return next(found, None)

        drift = {of: self._drift(of) for of in (_REQUEST, _RESPONSE)}
        return {
            "before": first("before"),
            "after": first("after"),
            "samples": self._samples,
            "drift": drift if any(drift.values()) else None,
        }

    def _drift(self, of: str) -> float | None:
        """Returns the last median over the first."""
        p50 = [sample["p50"] for sample in self._samples if sample["of"] == of]
        return p50[-1] / p50[0] if len(p50) > 1 and p50[0] else None


class _Sizes:
    """Holds the sizes of messages, in bytes."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.responses: list[int] = []


def quarters(planned: int) -> frozenset[int]:
    """Returns after how many of the planned generations a quarter, half, three quarters are done.

    None of them is the end.
    """
    return frozenset(-(-planned * quarter // 4) for quarter in (1, 2, 3)) - {0, planned}


def payload_bytes(message_bytes: int) -> int:
    """Returns the payload with which an Echo is a message of that size, gRPC's header included."""
    room = max(0, message_bytes - _GRPC_HEADER)
    # A tag, the length in one byte for each 7 bits, the payload.
    for length in (1, 2, 3, 4):
        payload = room - 1 - length
        if payload < 1 << 7 * length:
            return max(0, payload)
    return payload


def measure_idle_rtt(
    echo: Echo, clock: Callable[[], int], count: int = COUNT, payload: int = 0
) -> dict[str, Any] | None:
    """Times `count` round trips of an otherwise idle link, in ms; None when the server is gone."""
    sent = bytes(payload)
    elapsed_ms = []
    try:
        for _ in range(_WARM_UP):
            echo(sent)
        for _ in range(count):
            started = clock()
            echo(sent)
            elapsed_ms.append((clock() - started) / 1e6)
    except OutriderError:
        return None
    spread = percentiles(elapsed_ms)
    return None if spread is None else {"count": count, "min": min(elapsed_ms)} | asdict(spread)
