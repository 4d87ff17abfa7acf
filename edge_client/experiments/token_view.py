"""A generation token by token: accepted, recovered or bonus, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.types import Opinion
from edge_client.experiments.columns import StepColumns
from edge_client.experiments.figures import SPLIT
from edge_client.experiments.records import Record

VIEWS = 4
"""Generations that are shown token by token."""

Pieces = Callable[[Sequence[int]], Sequence[str]]
"""Returns the text that each token of an output made certain."""
Opinions = Mapping[str, Opinion]
"""What models think of a text, by the name that is shown; who could not be asked is missing."""
AskOpinions = Callable[[Sequence[int], Sequence[int]], Opinions]
"""Asks the models of MODELS about the output tokens after a prompt."""
MODELS = ("target", "draft model")

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
    records: Sequence[Record], pieces: Pieces | None, opinions: AskOpinions | None
) -> tuple[View, ...]:
    """Returns the first few generations of speculative; none where texts cannot be taken apart."""
    shown = [r for r in records if r.arm == SPLIT and r.repeat == 0 and r.error is None and r.steps]
    return tuple(_view(r, pieces, opinions) for r in shown[:VIEWS]) if pieces is not None else ()


def _view(record: Record, pieces: Pieces, opinions: AskOpinions | None) -> View:
    output = record.output_token_ids or ()
    texts = pieces(output)
    known = {} if opinions is None else opinions(record.prompt_token_ids or (), output)
    assert record.steps is not None  # as `views` chose
    tokens = []
    for index, (kind, where) in enumerate(list(_places(record.steps))[: len(output)]):
        said = [f"token {index}, id {output[index]}: {KINDS[kind]}", where]
        said += [f"{model}: {_thought(known.get(model), index)}" for model in MODELS]
        tokens.append(Token(texts[index], kind, "\n".join(said)))
    return View(record.prompt_id, record.turn, tuple(tokens))


def _thought(opinion: Opinion | None, index: int) -> str:
    if opinion is None:
        return "probability and rank not measured"
    rank = f"rank {opinion.ranks[index]}" if opinion.ranks else "rank not measured"
    return f"probability {math.exp(opinion.logprobs[index]):.1%}, {rank}"


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
