"""A generation token by token: accepted, recovered or bonus, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge_client.experiments.columns import StepColumns
from edge_client.experiments.figures import SPLIT
from edge_client.experiments.records import Record

VIEWS = 4
"""Generations that are shown token by token."""

Pieces = Callable[[Sequence[int]], Sequence[str]]
"""Returns the text that each token of an output made certain."""
Logprobs = Callable[[Sequence[int], Sequence[int]], Sequence[float] | None]
"""Returns the target's log-probability of each output token after a prompt; None without."""

KINDS: Mapping[str, str] = {
    "accepted": "drafted and confirmed",
    "recovered": "the target’s own token where a guess was rejected",
    "bonus": "the target’s own token after a draft that was accepted whole",
    "alone": "written by the target alone, while no draft waited",
    "committed": "committed by the gate without asking",
}
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Token:
    """Is one output token: its text, what it is, and what the pointer shows."""

    text: str
    kind: str
    hint: str


@dataclass(frozen=True, slots=True)
class View:
    """Is one generation token by token."""

    prompt_id: str
    turn: int
    tokens: tuple[Token, ...]


def views(
    records: Sequence[Record], pieces: Pieces | None, logprobs: Logprobs | None
) -> tuple[View, ...]:
    """Returns the first few generations of speculative; none where texts cannot be taken apart."""
    shown = [r for r in records if r.arm == SPLIT and r.repeat == 0 and r.error is None and r.steps]
    return tuple(_view(r, pieces, logprobs) for r in shown[:VIEWS]) if pieces is not None else ()


def _view(record: Record, pieces: Pieces, logprobs: Logprobs | None) -> View:
    output = record.output_token_ids or ()
    texts = pieces(output)
    known = None if logprobs is None else logprobs(record.prompt_token_ids or (), output)
    assert record.steps is not None  # as `views` chose
    places = list(_places(record.steps))
    tokens = []
    for index, (kind, where) in enumerate(places[: len(output)]):
        chance = (
            f"target’s probability {math.exp(known[index]):.1%}"
            if known is not None
            else "target’s probability not measured"
        )
        said = f"token {index}, id {output[index]}: {KINDS[kind]}\n{where}\n{chance}"
        tokens.append(Token(texts[index], kind, f"{said}; rank not measured"))
    return View(record.prompt_id, record.turn, tuple(tokens))


def _places(steps: StepColumns) -> Iterator[tuple[str, str]]:
    """Yields what each token is, and the round it came with in words."""
    count = len(steps.arrival_ns or ())

    def at(column: Sequence[int | None] | None, index: int) -> int | None:
        return None if column is None else column[index]

    for index in range(count):
        drafted, accepted = at(steps.num_draft_tokens, index), at(steps.num_accepted_tokens, index)
        asked = at(steps.asked, index)
        spans = (
            ("drafted in", at(steps.draft_ns, index)),
            ("round trip", at(steps.elapsed_ns, index)),
            ("of it at the server", at(steps.total_ns, index)),
            ("target", at(steps.computed_ns, index)),
        )
        known = [(name, ns / _NS_PER_MS) for name, ns in spans if ns is not None]
        times = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in known)
        for number in range(at(steps.num_tokens, index) or 0):
            if asked is not None and not asked:
                yield "committed", times
            elif accepted is None or drafted is None:
                yield "alone", times
            elif number < accepted:
                yield "accepted", f"guess {number + 1} of {drafted}; {times}"
            else:
                kind = "bonus" if accepted == drafted else "recovered"
                yield kind, f"after {accepted} accepted of {drafted}; {times}"
