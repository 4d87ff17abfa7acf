"""The raw steps of a record, by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.types import StepTiming
from edge_client.loop import Step

Column = tuple[int | None, ...] | None  # that of `asked` holds truth values


@dataclass(frozen=True, slots=True)
class StepColumns:
    """Keeps the raw steps of a record, one entry a step in each column.

    A column is None where no step has a value; times are whole nanoseconds.
    """

    arrival_ns: Column
    num_tokens: Column
    elapsed_ns: Column
    draft_ns: Column
    num_draft_tokens: Column
    num_accepted_tokens: Column
    queued_ns: Column
    batched_ns: Column
    computed_ns: Column
    total_ns: Column
    busy_ns: Column
    forward_passes: Column
    step_sessions: Column
    step_tokens: Column
    asked: Column
    draft_probabilities_bytes: Column


def columns(steps: Sequence[Step], arrivals_ns: Sequence[int]) -> StepColumns:
    """Turns steps into columns; `arrivals_ns` are the client's clock at each."""

    def column(read: Callable[[Step], int | None]) -> Column:
        values = tuple(read(step) for step in steps)
        return values if any(value is not None for value in values) else None

    def timing(read: Callable[[StepTiming], int]) -> Column:
        return column(lambda step: None if step.timing is None else read(step.timing))

    return StepColumns(
        arrival_ns=tuple(arrivals_ns),
        num_tokens=column(lambda step: len(step.token_ids)),
        elapsed_ns=column(lambda step: step.elapsed_ns),
        draft_ns=column(lambda step: step.draft_ns),
        num_draft_tokens=column(lambda step: step.num_draft_tokens),
        num_accepted_tokens=column(lambda step: step.num_accepted_tokens),
        queued_ns=timing(lambda t: t.queued_ns),
        batched_ns=timing(lambda t: t.batched_ns),
        computed_ns=timing(lambda t: t.computed_ns),
        total_ns=timing(lambda t: t.total_ns),
        busy_ns=timing(lambda t: t.busy_ns),
        forward_passes=timing(lambda t: t.forward_passes),
        step_sessions=timing(lambda t: t.step_sessions),
        step_tokens=timing(lambda t: t.step_tokens),
        asked=column(lambda step: step.asked),
        draft_probabilities_bytes=column(lambda step: step.draft_probabilities_bytes),
    )
