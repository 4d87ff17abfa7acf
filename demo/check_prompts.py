"""Check that no prompt of `prompts.jsonl` is copied from the corpora.

A prompt's text, or a message of it, must not occur in a corpus file; nor may any run of eight of
its words, letter case, punctuation and line breaks aside.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import corpora

RUN = 8
"""Words in a run that counts as copied."""


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[a-z0-9']+", text.lower())


def texts(prompt: dict[str, Any]) -> list[str]:
    """What a prompt says: its story opening, or its messages."""
    if "prompt" in prompt:
        return [str(prompt["prompt"])]
    return [str(message["content"]) for message in prompt["messages"]]


def copied(text: str, body: str) -> str | None:
    """The first run of the text that occurs in `body` (words joined by single blanks)."""
    parts = words(text)
    size = min(RUN, len(parts))
    for at in range(len(parts) - size + 1):
        run = " ".join(parts[at : at + size])
        if f" {run} " in body:
            return run
    return None


def main() -> int:
    """Exit 1 and name the prompts where any is copied."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--prompts", type=Path, default=here / "prompts.jsonl", help="JSON lines")
    parser.add_argument(
        "--corpora", type=Path, default=corpora.default_corpora(), help="folder of the corpora"
    )
    args = parser.parse_args()
    files = sorted(args.corpora.glob("*.txt"))
    if not files:
        print(f"check_prompts.py: no corpus in {args.corpora}: see --corpora", file=sys.stderr)
        return 2
    prompts = [json.loads(line) for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    found = 0
    for file in files:
        body = f" {' '.join(words(file.read_text(encoding='utf-8')))} "
        for prompt in prompts:
            for text in texts(prompt):
                if run := copied(text, body):
                    found += 1
                    print(f"{prompt['id']}: {run!r} stands in {file.name}")
    print(f"{len(prompts)} prompts, {len(files)} corpora, {found} copied")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
