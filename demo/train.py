"""Train the demonstration pair: a tokenizer, a target, and a draft distilled from the target.

    python demo/train.py all

The steps can be run one by one, in the order `tokenizer`, `target`, `loops`, `draft`. Training of
target or draft that was stopped resumes from its last checkpoint under `--scratch`; delete that
folder to begin anew. Everything random is seeded. `demo/evaluate.py` then measures the pair and
writes the model cards.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import corpora
import torch
from curve import svg
from distil import DraftPlan, distil
from folders import load, save
from lessons import OwnText
from llama import Llama
from target import TargetPlan, device_of, train_target
from unloop import LoopPlan, unloop
from vocabulary import load_tokenizer, train_tokenizer

ENTRIES = 4096
"""Entries of the tokenizer, the two special tokens included."""


def keep(model: Llama, folder: Path, scratch: Path, title: str, parts: dict[str, str]) -> None:
    """Write a model folder, with its loss curve as a picture and as numbers."""
    text = (scratch / f"{folder.name}_curve.json").read_text(encoding="utf-8")
    picture = svg(title, json.loads(text)["curve"], parts)
    save(
        model,
        folder,
        scratch / "tokenizer",
        {"training_curve.svg": picture, "training_curve.json": text},
    )


def parse() -> argparse.Namespace:
    """The command line."""
    root = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "step", choices=("tokenizer", "target", "loops", "draft", "all"), help="what to train"
    )
    parser.add_argument(
        "--corpora",
        type=Path,
        default=corpora.default_corpora(),
        help="folder of the corpus files (default: ../shared/data/corpora beside the repository)",
    )
    parser.add_argument(
        "--output", type=Path, default=root, help="folder that gets target/ and draft/ (demo/)"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=root.parent / ".work" / "demo",
        help="folder for checkpoints (.work/demo/ in the repository)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1 ..."
    )
    parser.add_argument("--threads", type=int, default=2, help="processor threads (2)")
    parser.add_argument(
        "--target-steps", type=int, default=TargetPlan.steps, help="training steps of the target"
    )
    parser.add_argument(
        "--draft-steps", type=int, default=DraftPlan.steps, help="training steps of the draft"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="do without torch.compile (no C++ compiler)"
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Run the steps that the command line names."""
    training = corpora.load_training(args.corpora)
    held_out = corpora.load_held_out(args.corpora)
    device = device_of(args.device)
    args.scratch.mkdir(parents=True, exist_ok=True)
    files = args.scratch / "tokenizer"
    if args.step in ("tokenizer", "all"):
        train_tokenizer(training, ENTRIES, files)
    tokenizer = load_tokenizer(files)
    if args.step in ("target", "all"):
        plan = TargetPlan(steps=args.target_steps)
        model = train_target(
            tokenizer, training, held_out, plan, args.scratch, device, not args.no_compile
        )
        save(model, args.scratch / "target", files, {})
    if args.step in ("loops", "all"):
        model = unloop(
            load(args.scratch / "target").to(device),
            tokenizer,
            training,
            held_out,
            LoopPlan(),
            args.scratch,
            not args.no_compile,
        )
        parts = {
            "training": "training",
            "stories": "held-out stories",
            "dialogues": "held-out dialogues",
        }
        keep(model, args.output / "target", args.scratch, "target: loss", parts)
    if args.step in ("draft", "all"):
        target = load(args.output / "target").to(device)
        model = distil(
            target,
            tokenizer,
            training,
            held_out,
            DraftPlan(steps=args.draft_steps),
            OwnText(),
            args.scratch,
            not args.no_compile,
        )
        parts = {
            "distillation": "distillation loss",
            "stories": "held-out stories",
            "dialogues": "held-out dialogues",
        }
        keep(model, args.output / "draft", args.scratch, "draft: loss", parts)


def main() -> int:
    """Train; a missing corpus or an unfinished step ends with a message and exit status 2."""
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    try:
        run(args)
    except corpora.MissingError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
