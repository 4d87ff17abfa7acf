"""Measure a pair on held-out text and write `results.json` and the model cards.

    python demo/evaluate.py

Held-out loss of target and draft; then, over story openings and dialogue contexts that training
never saw, greedy speculative decoding: accepted / drafted, agreement of the draft's first 1 to 4
choices with the target's, loops, and replies that end by themselves. `--model` measures the loss
of one other model alone, on the same text with that model's own tokenizer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from cards import write_cards
from corpora import (
    END_OF_TEXT_ID,
    END_OF_TURN,
    MissingError,
    Split,
    default_corpora,
    load_held_out,
)
from folders import load
from llama import Llama
from measure import (
    Loss,
    dialogue_contexts,
    document_loss,
    loops,
    pair_figures,
    spread,
    story_openings,
)
from speculate import generate
from tokenizers import Tokenizer
from vocabulary import load_tokenizer

GAMMA = 4
OPENING = 12
"""Words of a held-out story that stand as its opening."""


def losses(model: Llama, tokenizer: Tokenizer, split: Split) -> dict[str, dict[str, float]]:
    """Held-out loss on stories, on dialogues, and over all tokens of both."""
    marked = tokenizer.token_to_id(END_OF_TURN) is not None
    dialogues = split.dialogues
    if not marked:
        dialogues = [text.replace(END_OF_TURN, "").rstrip() for text in dialogues]
    both = Loss()
    out = {}
    for name, documents in (("stories", split.stories), ("dialogues", dialogues)):
        one = document_loss(model, tokenizer, documents)
        out[name] = one.figures()
        for field in vars(one):
            setattr(both, field, getattr(both, field) + getattr(one, field))
    out["together"] = both.figures()
    return out


def samples(
    target: Llama, tokenizer: Tokenizer, file: Path, tokens: int, every: int
) -> list[dict[str, str]]:
    """The target's greedy answers to every `every`th prompt of `prompts.jsonl`."""
    out = []
    for line in file.read_text(encoding="utf-8").splitlines()[1::every]:
        prompt = json.loads(line)
        if "prompt" in prompt:
            text = str(prompt["prompt"])
        else:
            text = ""
            for message in prompt["messages"]:
                speaker = "User" if message["role"] == "user" else "Assistant"
                text += f"{speaker}: {message['content'].strip()}{END_OF_TURN}\n"
            text += "Assistant:"
        ids = tokenizer.encode(text).ids
        made = generate(target, torch.tensor([ids]), tokens)[0]
        shown = text.replace(END_OF_TURN, "")
        out.append({"id": prompt["id"], "prompt": shown, "text": tokenizer.decode(made)})
    return out


def parse() -> argparse.Namespace:
    """The command line."""
    root = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpora",
        type=Path,
        default=default_corpora(),
        help="folder of the corpus files (default: ../shared/data/corpora beside the repository)",
    )
    parser.add_argument("--pair", type=Path, default=root, help="folder of target/ and draft/")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts a kind (200)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens at most (128)")
    parser.add_argument(
        "--documents", type=int, default=500, help="held-out documents a kind for the loss (500)"
    )
    parser.add_argument("--threads", type=int, default=2, help="processor threads (2)")
    parser.add_argument("--model", type=Path, help="measure only this model's held-out loss")
    parser.add_argument("--no-loss", action="store_true", help="leave the losses out")
    parser.add_argument("--no-write", action="store_true", help="print, but write no file")
    return parser.parse_args()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The figures that the command line asks for."""
    held_out = load_held_out(args.corpora)
    some = Split(
        spread(held_out.stories, args.documents), spread(held_out.dialogues, args.documents)
    )
    if args.model is not None:
        return losses(load(args.model), load_tokenizer(args.model), some)
    tokenizer = load_tokenizer(args.pair / "target")
    target, draft = load(args.pair / "target"), load(args.pair / "draft")
    results: dict[str, Any] = {}
    for name, model in (("target", target), ("draft", draft)):
        folder = args.pair / name
        results[name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights_bytes": (folder / "model.safetensors").stat().st_size,
            "folder_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        }
        if not args.no_loss:
            results[name]["held_out"] = losses(model, tokenizer, some)
    prompts = {
        "stories": story_openings(tokenizer, held_out, args.prompts, OPENING),
        "dialogues": dialogue_contexts(tokenizer, held_out, args.prompts, END_OF_TURN + "\n"),
    }
    for name, some_prompts in prompts.items():
        results[name] = pair_figures(target, draft, some_prompts, args.tokens, GAMMA, name)
    own_words = [
        tokenizer.encode(text).ids[len(prompt) :][: args.tokens]
        for text, prompt in zip(
            spread(held_out.stories, args.prompts), prompts["stories"], strict=True
        )
    ]
    repeating = sum(map(loops, own_words)) / len(own_words)
    results["stories"]["corpus_repeats_a_4_gram_4_times"] = round(repeating, 4)
    results["dialogues_run_on"] = pair_figures(
        target, draft, prompts["dialogues"], 64, GAMMA, "run-on dialogues", (END_OF_TEXT_ID,)
    )
    results["samples"] = samples(target, tokenizer, args.pair / "prompts.jsonl", 240, every=11)
    assert not math.isnan(results["stories"]["accepted_per_drafted"])
    return results


def main() -> int:
    """Measure and write."""
    args = parse()
    torch.set_num_threads(args.threads)
    try:
        results = run(args)
    except MissingError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    print(json.dumps({k: v for k, v in results.items() if k != "samples"}, indent=2))
    if args.model is None and not args.no_write:
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        (args.pair / "results.json").write_text(text, encoding="utf-8")
        write_cards(args.pair, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
