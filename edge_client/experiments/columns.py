"""The raw steps of a record, by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.types import StepTiming
from edge_client.steps import Spans, Step

Column = tuple[int | None, ...] | None
"""Those of `asked`, `ahead` and `overtaken` hold truth values."""


@dataclass(frozen=True, slots=True)
class StepColumns:
    """Keeps the raw steps of a record, one entry a step in each column.

    A column is None where no step has a value; times are whole nanoseconds, points of time
    are counted from when the request was handed to the arm.
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
    bytes_up: Column
    bytes_down: Column
    serialization_ns: Column
    received_ns: Column
    ahead: Column
    overtaken: Column
    num_guessed_tokens: Column
    num_wasted_tokens: Column
    drafting_ns: tuple[Spans | None, ...] | None


def columns(steps: Sequence[Step], arrivals_ns: Sequence[int], started_ns: int = 0) -> StepColumns:
    """Turns steps into columns.

    `arrivals_ns` are the client's clock at each, counted from `started_ns`.
    """

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
        bytes_up=column(lambda step: step.bytes_up),
        bytes_down=column(lambda step: step.bytes_down),
        serialization_ns=column(lambda step: step.serialization_ns),
        received_ns=column(
            lambda step: None if step.received_ns is None else step.received_ns - started_ns
        ),
        ahead=column(lambda step: step.ahead),
        overtaken=column(lambda step: step.overtaken),
        num_guessed_tokens=column(lambda step: step.num_guessed_tokens),
        num_wasted_tokens=column(lambda step: step.num_wasted_tokens),
        drafting_ns=_drafting(steps, started_ns),
    )


def _drafting(steps: Sequence[Step], started_ns: int) -> tuple[Spans | None, ...] | None:
    if all(step.drafting is None for step in steps):
        return None
    return tuple(
        None
        if step.drafting is None
        else tuple((begin - started_ns, end - started_ns) for begin, end in step.drafting)
        for step in steps
    )
