"""Distilling the draft from the target: first on the corpora, then on the target's own text.

A greedy speculative decoder asks the draft for one thing: the target's first choice, behind text
that the target itself wrote. So after a first part on corpus text the draft is trained on greedy
continuations by the target of openings and contexts of the training split.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from corpora import END_OF_TEXT_ID, IGNORE, IntArray, Split, encode, pack
from llama import DRAFT, Llama
from muon import Optimiser
from speculate import generate
from target import Cycle, mean_loss

log = logging.getLogger("demo")


@dataclass(frozen=True)
class DraftPlan:
    """How the draft is distilled; sizes in tokens, rates as the optimiser takes them."""

    steps: int = 1500
    row: int = 512
    batch: int = 8192
    own_from: float = 0.35
    """Share of the steps after which the target's own text is mixed in."""
    own: float = 0.8
    """Share of the tokens, from there on, of the target's own text."""
    own_stories: float = 0.6
    """Share of that which is stories."""
    corpus_stories: float = 0.5
    choice: float = 0.4
    """Weight of the cross-entropy on the target's first choice in its own text; the rest is the
    divergence from the target's whole distribution, alone on corpus text."""
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    seed: int = 2
    evaluate_every: int = 100
    save_every: int = 100


@dataclass(frozen=True)
class OwnText:
    """How much the target writes for its draft."""

    batch: int = 128
    stories: int = 6144
    story_tokens: int = 160
    replies: int = 8192
    reply_tokens: int = 64
    seed: int = 3


def own_stories(
    target: Llama, stories: list[list[int]], plan: OwnText, device: torch.device
) -> Iterator[list[list[int]]]:
    """Stories that the target writes after 3 to 24 tokens of a training story.

    Every other batch draws its next four tokens at temperature 1 before it goes on greedily, so
    that the draft also sees openings no training story has.
    """
    rng = random.Random(plan.seed)
    for index in range(plan.stories // plan.batch):
        length = rng.randint(4, 25)
        some = rng.sample([s for s in stories if len(s) > length], plan.batch)
        prompts = torch.tensor([story[:length] for story in some], device=device)
        out = generate(target, prompts, plan.story_tokens, 4 * (index % 2), seed=index)
        yield [p + o for p, o in zip(prompts.tolist(), out, strict=True)]


def own_replies(
    target: Llama, contexts: list[list[int]], plan: OwnText, device: torch.device
) -> Iterator[list[list[int]]]:
    """Replies that the target gives in contexts of training dialogues, batched by length."""
    rng = random.Random(plan.seed)
    alike: dict[int, list[list[int]]] = {}
    for context in contexts:
        alike.setdefault(len(context), []).append(context)
    groups = []
    for length in sorted(alike):
        rng.shuffle(alike[length])
        for at in range(0, len(alike[length]) - 31, plan.batch):
            groups.append(alike[length][at : at + plan.batch])
    rng.shuffle(groups)
    made = 0
    for index, group in enumerate(groups):
        if made >= plan.replies:
            break
        prompts = torch.tensor(group, device=device)
        out = generate(target, prompts, plan.reply_tokens, 2 * (index % 2), seed=index)
        made += len(group)
        yield [p + o for p, o in zip(group, out, strict=True)]


def contexts_of(dialogues: list[list[int]], opening: list[int], rng: random.Random) -> list[list[int]]:
    """One context per dialogue, up to and including an `Assistant:`; `opening` is its tokens."""
    out = []
    for ids in dialogues:
        places = [
            at + len(opening)
            for at in range(1, min(len(ids), 400) - len(opening))
            if ids[at : at + len(opening)] == opening
        ]
        if places:
            out.append(ids[: rng.choice(places)])
    return out


def write_own_text(
    target: Llama, tokenizer: Tokenizer, training: Split, plan: OwnText, file: Path
) -> tuple[list[list[int]], list[list[int]]]:
    """The target's own stories and dialogues as documents of ids, kept in `file` for a resume."""
    if file.is_file():
        kept = json.loads(file.read_text())
        return kept["stories"], kept["dialogues"]
    device = next(target.parameters()).device
    opening = tokenizer.encode("Assistant:", add_special_tokens=False).ids
    contexts = contexts_of(encode(tokenizer, training.dialogues), opening, random.Random(plan.seed))
    stories: list[list[int]] = []
    dialogues: list[list[int]] = []
    made = own_stories(target, encode(tokenizer, training.stories), plan, device)
    for some in tqdm(made, desc="own stories", total=plan.stories // plan.batch, mininterval=5):
        stories += some
    for some in tqdm(own_replies(target, contexts, plan, device), desc="own replies", mininterval=5):
        dialogues += some
    file.write_text(json.dumps({"stories": stories, "dialogues": dialogues}))
    log.info(
        "own text: %d tokens of stories, %d of dialogues",
        sum(map(len, stories)), sum(map(len, dialogues)),
    )  # fmt: skip
    return stories, dialogues


def batches(
    corpus: tuple[list[list[int]], list[list[int]]],
    own: tuple[list[list[int]], list[list[int]]],
    plan: DraftPlan,
) -> Iterator[tuple[IntArray, IntArray, float]]:
    """Batches `[batch / row, row]` of inputs and labels, and the weight of the first choice."""
    rng = random.Random(plan.seed)
    cycles = [Cycle(documents, rng) for documents in (*corpus, *own)]
    step, block = 0, 32 * plan.batch
    rows = plan.batch // plan.row

    def pool(tales: Cycle, talks: Cycle, tokens: float, share: float) -> list[IntArray]:
        some = tales.take(round(tokens * share)) + talks.take(round(tokens * (1 - share)))
        return list(pack([strip_end(document) for document in some], plan.row, rng))

    while True:
        part = plan.own if step >= plan.steps * plan.own_from else 0.0
        made: list[tuple[IntArray, IntArray, float]] = []
        for tales, talks, tokens, share, choice in (
            (cycles[0], cycles[1], block * (1 - part), plan.corpus_stories, 0.0),
            (cycles[2], cycles[3], block * part, plan.own_stories, plan.choice),
        ):
            if tokens < 1:
                continue
            x, y = pool(tales, talks, tokens, share)
            for at in range(0, len(x) - rows + 1, rows):
                made.append((x[at : at + rows], y[at : at + rows], choice))
        rng.shuffle(made)
        step += len(made)
        yield from made


def strip_end(document: list[int]) -> list[int]:
    """A document without a closing `<|endoftext|>`, which packing adds."""
    return document[:-1] if document[-1] == END_OF_TEXT_ID else document


def distil(
    target: Llama,
    tokenizer: Tokenizer,
    training: Split,
    held_out: Split,
    plan: DraftPlan,
    own_plan: OwnText,
    scratch: Path,
    compiled: bool,
    start: Path | None = None,
) -> Llama:
    """Distil the draft, resuming from `scratch/draft.pt`; `start` may hold weights to begin with.

    Writes the curve to `scratch/draft_curve.json`: held-out loss in nats per token on corpus text.
    """
    device = next(target.parameters()).device
    torch.manual_seed(plan.seed)
    model = Llama(DRAFT).to(device)
    if start is not None:
        model.load_state_dict(torch.load(start, map_location=device, weights_only=True)["model"])
    optimiser = Optimiser(model, plan.steps, plan.muon_lr, plan.adam_lr)
    checkpoint, curve_file = scratch / "draft.pt", scratch / "draft_curve.json"
    curve: list[dict[str, float]] = []
    first, spent = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first, curve, spent = state["step"], state["curve"], state["seconds"]
        log.info("resuming at step %d", first)
    own = write_own_text(target, tokenizer, training, own_plan, scratch / "own_text.json")
    corpus = (encode(tokenizer, training.stories), encode(tokenizer, training.dialogues))
    probe = [
        pack(encode(tokenizer, documents[:96]), plan.row, random.Random(0))
        for documents in (held_out.stories, held_out.dialogues)
    ]
    target.requires_grad_(False)

    def loss_of(x: Tensor, y: Tensor, choice: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            wanted = target(x).float()
            given = model(x)
        given = given.float().log_softmax(-1)
        whole = -(wanted.softmax(-1) * given).sum(-1)
        best = -given.gather(-1, wanted.argmax(-1, keepdim=True))[..., 0]
        each = (1 - choice) * whole + choice * best
        real = y != IGNORE
        return (each * real).sum() / real.sum()

    fast: Callable[[Tensor, Tensor, Tensor], Tensor] = (
        torch.compile(loss_of, dynamic=False) if compiled else loss_of
    )
    stream = batches(corpus, own, plan)
    for _ in range(first):
        next(stream)
    began = time.monotonic() - spent
    recent = 0.0
    for step in tqdm(range(first, plan.steps), initial=first, total=plan.steps, mininterval=5):
        x, y, choice = next(stream)
        weight = torch.tensor(choice, device=device)
        loss = fast(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device), weight)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(step)
        recent += loss.item()
        done = step + 1
        if done % plan.evaluate_every == 0 or done == plan.steps:
            point = {
                "step": done,
                "tokens": done * plan.batch,
                "distillation": recent / ((done - 1) % plan.evaluate_every + 1),
                "stories": mean_loss(model, probe[0]),
                "dialogues": mean_loss(model, probe[1]),
                "seconds": time.monotonic() - began,
            }
            curve.append(point)
            recent = 0.0
            log.info(" ".join(f"{name} {value:.6g}" for name, value in point.items()))
            curve_file.write_text(json.dumps({"plan": asdict(plan), "curve": curve}, indent=1))
        if done % plan.save_every == 0 or done == plan.steps:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": done,
                "curve": curve,
                "seconds": time.monotonic() - began,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return model
