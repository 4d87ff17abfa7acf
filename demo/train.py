"""Train the demonstration pair: a tokenizer, a target, and a draft distilled from the target.

    python demo/train.py all

The steps can be run one by one (`tokenizer`, `target`, `draft`); a step that was stopped resumes
from its last checkpoint under `--scratch`. Everything random is seeded.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

import corpora
from target import TargetPlan, device_of, train_target
from vocabulary import load_tokenizer, train_tokenizer

ENTRIES = 4096


def main() -> int:
    """Parse the command line and run the step it names."""
    root = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("step", choices=("tokenizer", "target", "draft", "all"))
    parser.add_argument("--corpora", type=Path, default=corpora.default_corpora())
    parser.add_argument("--scratch", type=Path, default=root.parent / ".work" / "demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=TargetPlan.steps)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    try:
        training = corpora.load_training(args.corpora)
        held_out = corpora.load_held_out(args.corpora)
    except corpora.CorpusError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    files = args.scratch / "tokenizer"
    if args.step in ("tokenizer", "all"):
        train_tokenizer(training, ENTRIES, files)
    if args.step in ("target", "all"):
        plan = TargetPlan(steps=args.steps)
        train_target(
            load_tokenizer(files), training, held_out, plan, args.scratch,
            device_of(args.device), not args.no_compile,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
