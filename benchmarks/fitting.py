"""Which prompts of a file a pair can answer: `python -m benchmarks.fitting --prompts FILE`.

`bench` refuses a file with a prompt beyond the models' context. This prints the lines that fit with
all their turns and whole answers; how many, by category, goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from common.lm.loading import load
from edge_client.experiments.prompts import read_prompts
from edge_client.text import TextEncoder


def main() -> int:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--draft", default="demo/draft")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    model = load(options.draft, dtype="float32", device="cpu")
    encoder = TextEncoder(model.tokenizer)
    lines = options.prompts.read_text(encoding="utf-8").split("\n")
    fitting: Counter[str] = Counter()
    everything: Counter[str] = Counter()
    for prompt in read_prompts(options.prompts):
        category = prompt.category or "none"
        everything[category] += 1
        answers = [""] * (len(prompt.turns) - 1)
        tokens = len(prompt.encode(encoder, answers)) + options.max_new_tokens * len(prompt.turns)
        if tokens <= model.context_length:
            fitting[category] += 1
            print(lines[int(prompt.where.rpartition(":")[2]) - 1])
    said = ", ".join(f"{fitting[name]}/{count} {name}" for name, count in everything.items())
    print(f"{fitting.total()} of {everything.total()} fit: {said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
