"""Links by name, and the units and files links are described with."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import UsageError
from edge_client.relay.shape import Delays, Shape

_RATES = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds(text: str) -> float:
    """Reads a time such as `50ms` or `0.2s`; raises UsageError naming what was given."""
    return _quantity(text, _TIMES, "a time", "50ms, 0.2s")


def bytes_per_second(text: str) -> float:
    """Reads a rate such as `5mbit`, in bits a second; raises UsageError naming what was given."""
    rate = _quantity(text, _RATES, "a rate", "800kbit, 5mbit") / 8
    if not rate:
        raise UsageError(f"a rate of {text} lets nothing through; leave it out for no limit")
    return rate


def _quantity(text: str, units: dict[str, float], what: str, examples: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([a-z]+)", text)
    if found is None or found[2] not in units:
        raise UsageError(f"{text!r} is not {what}; write for example {examples}")
    return float(found[1]) * units[found[2]]


def read_trace(file: Path) -> tuple[int, ...]:
    """Reads a mahimahi packet-delivery trace: a line an opportunity, in whole milliseconds.

    Raises UsageError naming file and line.
    """
    try:
        lines = file.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or 'not a trace'}") from None
    times: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.isdigit() or (times and int(line) < times[-1]):
            raise UsageError(f"{file}:{number}: {line[:40]!r}; expected milliseconds in order")
        times.append(int(line))
    if not times or not times[-1]:
        raise UsageError(f"{file}: a trace needs at least one opportunity after 0 ms")
    return tuple(times)


def symmetric(
    rtt_s: float, jitter_s: float, up: float | None, down: float | None
) -> tuple[Shape, Shape]:
    """Makes a link of so much round trip, spread evenly over ±jitter, half of it each way."""
    low, high = max(rtt_s - jitter_s, 0) / 2, (rtt_s + jitter_s) / 2
    delays = Delays((low, high) if jitter_s else (rtt_s / 2,))
    return Shape(delays, up), Shape(delays, down)


def _measured(p10: float, p50: float, p90: float, up: float, down: float) -> tuple[Shape, Shape]:
    """Makes a link of measured round trips in ms and rates in Mbit/s.

    Quantiles in tenths; beyond p10 and p90 they go on as steeply as between them and p50.
    """
    lower, upper = (p50 - p10) / 4, (p90 - p50) / 4
    tenths = [p50 + step * (upper if step > 0 else lower) for step in range(-5, 6)]
    delays = Delays(tuple(max(value, 1) / 2000 for value in tenths))
    return Shape(delays, up * 1e6 / 8), Shape(delays, down * 1e6 / 8)


PROFILES: dict[str, tuple[Shape, Shape]] = {
    "loopback": symmetric(0.0, 0.0, None, None),
    "lan": symmetric(0.001, 0.0, 125e6, 125e6),
    "specedge": symmetric(0.01407, 0.0, None, None),
    "5g-mmwave": _measured(29, 52, 78, 30, 200),
    "4g-lte": _measured(53, 89, 105, 5, 30),
    "5g-driving": _measured(67, 75, 106, 10, 60),
    "5g-far-region": _measured(100.7, 132.1, 166.1, 30, 200),
    "200ms": symmetric(0.2, 0.0, None, None),
}
"""Round trips measured by Narayanan et al. (SIGCOMM 2021: 5g-mmwave, 4g-lte, 5g-far-region), by
Raca et al. (MMSys 2020: 5g-driving) and in SpecEdge (arXiv 2505.17052). The rates beside them are
round figures for such links, and ours."""


def profile(name: str) -> tuple[Shape, Shape]:
    """Returns a built-in link, (up, down); raises UsageError naming those there are."""
    if name not in PROFILES:
        raise UsageError(f"no link profile {name!r}; choose from {', '.join(PROFILES)}")
    return PROFILES[name]
