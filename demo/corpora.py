"""Reading the corpora, splitting them, and packing documents into training rows.

A document is a story or a whole dialogue. In training text it looks as the tokenizer renders it
for a user: `<|endoftext|>` first, then the story, or the turns as
`User: ...<|endofturn|>` newline `Assistant: ...<|endofturn|>` newline.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|endofturn|>"
END_OF_TEXT_ID = 0
END_OF_TURN_ID = 1
IGNORE = -100
"""Label of a position that carries no loss (padding)."""

STORIES_FILE = "tinystories_subset_train.txt"
DIALOGUES_FILE = "sgd_dialogues_train.txt"
DIALOGUES_DEV_FILE = "sgd_dialogues_dev.txt"
HELD_OUT_STORIES = 0.05
"""Share of the stories, the last ones of the file, that training never sees."""

IntArray = npt.NDArray[np.int64]


class MissingError(Exception):
    """Something needed (a corpus, a tokenizer, a model) is missing; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """Documents as training text, without the leading `<|endoftext|>`."""

    stories: list[str]
    dialogues: list[str]


def default_corpora() -> Path:
    """`../shared/data/corpora`, seen from the root of this repository."""
    return Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "corpora"


def read_documents(path: Path) -> list[str]:
    """The documents of one corpus file, in the file's order, without surrounding whitespace."""
    if not path.is_file():
        raise MissingError(
            f"no corpus file {path}: name the folder that holds {STORIES_FILE}, {DIALOGUES_FILE} "
            f"and {DIALOGUES_DEV_FILE} with --corpora"
        )
    text = path.read_text(encoding="utf-8")
    return [document for part in text.split(END_OF_TEXT) if (document := part.strip())]


def mark_turns(dialogue: str) -> str:
    """Add `<|endofturn|>` at the end of every line of a `User:` / `Assistant:` dialogue."""
    return "".join(f"{line.strip()}{END_OF_TURN}\n" for line in dialogue.splitlines())


def load_training(corpora: Path) -> Split:
    """What training sees: the first 95 % of the stories, every training dialogue."""
    stories = read_documents(corpora / STORIES_FILE)
    kept = len(stories) - round(len(stories) * HELD_OUT_STORIES)
    dialogues = [mark_turns(d) for d in read_documents(corpora / DIALOGUES_FILE)]
    return Split(stories[:kept], dialogues)


def load_held_out(corpora: Path) -> Split:
    """What training never sees: the last 5 % of the stories, the development dialogues."""
    stories = read_documents(corpora / STORIES_FILE)
    kept = len(stories) - round(len(stories) * HELD_OUT_STORIES)
    dialogues = [mark_turns(d) for d in read_documents(corpora / DIALOGUES_DEV_FILE)]
    return Split(stories[kept:], dialogues)


def encode(tokenizer: Tokenizer, documents: list[str]) -> list[list[int]]:
    """Token ids of each document; the tokenizer itself puts `<|endoftext|>` first."""
    return [encoding.ids for encoding in tokenizer.encode_batch(documents)]


def pack(documents: list[list[int]], row: int, rng: random.Random) -> tuple[IntArray, IntArray]:
    """Pack whole documents into rows, each row beginning with the start of a document.

    Best fit: every document goes to the fullest row that still has room, so that almost no
    position is padding. A document longer than a row is cut into pieces. The last position of a
    document predicts `<|endoftext|>`.

    Returns inputs and labels, both `[rows, row]`; padding has the label `IGNORE`.
    """
    pieces: list[list[int]] = []
    for document in documents:
        whole = [*document, END_OF_TEXT_ID]
        starts = range(0, len(whole) - 1, row)
        pieces.extend(whole[start : start + row + 1] for start in starts)
    rng.shuffle(pieces)
    rooms: list[list[int]] = [[] for _ in range(row + 1)]
    rows: list[list[list[int]]] = []
    for piece in sorted(pieces, key=len, reverse=True):
        size = len(piece) - 1
        room = next((r for r in range(size, row + 1) if rooms[r]), None)
        if room is None:
            rows.append([])
            index, room = len(rows) - 1, row
        else:
            index = rooms[room].pop()
        rows[index].append(piece)
        rooms[room - size].append(index)
    inputs = np.zeros((len(rows), row), dtype=np.int64)
    labels = np.full((len(rows), row), IGNORE, dtype=np.int64)
    order = list(range(len(rows)))
    rng.shuffle(order)
    for target, source in enumerate(order):
        at = 0
        group = rows[source]
        rng.shuffle(group)
        # A cut document's later pieces may stand anywhere but first, where possible.
        group.sort(key=lambda piece: piece[0] != END_OF_TEXT_ID)
        for piece in group:
            end = at + len(piece) - 1
            inputs[target, at:end] = piece[:-1]
            labels[target, at:end] = piece[1:]
            at = end
    return inputs, labels
