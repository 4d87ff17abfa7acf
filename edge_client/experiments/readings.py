"""Readings of single records, for statistics to pool: milliseconds unless named otherwise.

A reading of raw steps is a list, empty where it does not apply; a sum is None there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from edge_client.experiments.columns import Column
from edge_client.experiments.records import Counts, Record

_NS_PER_MS = 1e6
_NS_PER_S = 1e9
_MS_PER_S = 1e3


def total(values: Iterable[float | None]) -> float | None:
    """Returns the sum of the known values, None when none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def bytes_both_ways(record: Record) -> float | None:
    """Returns bytes up plus bytes down."""
    return total((record.bytes_up, record.bytes_down))


def busy(record: Record) -> float | None:
    """Returns the target's own share of its forwards."""
    return None if record.target_busy_s is None else record.target_busy_s * _MS_PER_S


def asked_rounds(record: Record) -> float | None:
    """Returns the rounds that were asked for over the link; None where the server drafted."""
    return None if record.unasked_blocks is None else record.rounds


def milliseconds(field: str) -> Callable[[Record], float | None]:
    """Returns a reading of a field in seconds, as milliseconds."""

    def read(record: Record) -> float | None:
        seconds: float | None = getattr(record, field)
        return None if seconds is None else seconds * _MS_PER_S

    return read


def blocks(record: Record) -> float | None:
    """Returns the drafted blocks: those asked about, and those committed without asking."""
    return total((record.rounds, record.unasked_blocks))


def verified_tokens(record: Record) -> float | None:
    """Returns the output tokens that the cloud has judged or made."""
    if record.num_unverified_tokens is None or record.num_output_tokens is None:
        return None
    return record.num_output_tokens - record.num_unverified_tokens


def nats(record: Record) -> float | None:
    """Returns the negative log-likelihood of the whole output under the target."""
    if record.target_nll is None or record.num_output_tokens is None:
        return None
    return record.target_nll * record.num_output_tokens


def round_tokens(record: Record) -> float | None:
    """Returns the output tokens that rounds brought."""
    if record.mean_accepted_length is None or record.rounds is None:
        return None
    return record.mean_accepted_length * record.rounds


def gap_seconds(record: Record) -> list[float]:
    """Returns the gap before each token after the first arrival, in seconds."""
    gaps: list[float] = []
    previous: int | None = None
    for at, count in _rows(record, "arrival_ns", "num_tokens"):
        if not count:
            continue
        if previous is not None:
            gaps += [(at - previous) / count / _NS_PER_S] * count
        previous = at
    return gaps


def round_trips(record: Record) -> list[float]:
    """Returns the client's elapsed time of each round that was asked for over the link."""
    rounds = _rows(record, "elapsed_ns", "num_accepted_tokens", "asked")
    return [elapsed / _NS_PER_MS for elapsed, _, _ in rounds]


def network(record: Record) -> list[float]:
    """Returns client elapsed - server total of each arrival."""
    return [
        (mine - theirs) / _NS_PER_MS for mine, theirs in _rows(record, "elapsed_ns", "total_ns")
    ]


def queue(record: Record) -> list[float]:
    """Returns what each request waited on the server before and between its forwards."""
    return [sum(row) / _NS_PER_MS for row in _rows(record, "queued_ns", "batched_ns")]


def target_compute(record: Record) -> list[float]:
    """Returns the forwards each request took part in."""
    return [computed / _NS_PER_MS for (computed,) in _rows(record, "computed_ns")]


def draft(record: Record) -> list[float]:
    """Returns the drafting time of each round and of each block committed without asking."""
    return [spent / _NS_PER_MS for (spent,) in _rows(record, "draft_ns")]


def serialization(record: Record) -> list[float]:
    """Returns the client's time to make and read the messages of each round or piece."""
    return [spent / _NS_PER_MS for (spent,) in _rows(record, "serialization_ns")]


def overlap(record: Record) -> float | None:
    """Returns the time in which the client drafted, or waited for an answer, twice or more at once.

    Drafting and flights, summed, less the time in which there was any of them.
    """
    if record.rounds is None or record.steps is None or record.steps.drafting_ns is None:
        return None
    flights = _rows(record, "received_ns", "elapsed_ns")
    spans = [(received - elapsed, received) for received, elapsed in flights]
    spans += [span for drafted in record.steps.drafting_ns for span in drafted or ()]
    return (sum(end - begin for begin, end in spans) - _covered(spans)) / _NS_PER_MS


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    """Returns how much time lies in at least one of the spans."""
    covered, until = 0, None
    for begin, end in sorted(spans):
        start = begin if until is None else max(begin, until)
        covered += max(0, end - start)
        until = end if until is None else max(until, end)
    return covered


def at(counts: Counts | None, position: int) -> float | None:
    """Returns a count by position, 0 beyond the end of a known list."""
    if counts is None:
        return None
    return counts[position] if position < len(counts) else 0


def add_up(lists: Iterable[Counts | None]) -> list[int] | None:
    """Adds lists of counts by position, None when none is known."""
    known = [counts for counts in lists if counts is not None]
    if not known:
        return None
    width = max(map(len, known))
    return [sum(counts[i] for counts in known if i < len(counts)) for i in range(width)]


def _rows(record: Record, *names: str) -> Iterator[tuple[int, ...]]:
    """Yields the steps in which all the named columns have values."""
    if record.steps is None:
        return
    columns: Sequence[Column] = [getattr(record.steps, name) for name in names]
    present = [column for column in columns if column is not None]
    if len(present) < len(columns):
        return
    for row in zip(*present, strict=True):
        known = tuple(value for value in row if value is not None)
        if len(known) == len(row):
            yield known
