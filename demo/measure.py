"""Figures of a pair on held-out text: loss, agreement, acceptance, loops, replies that end."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from corpora import END_OF_TEXT_ID, END_OF_TURN, IGNORE, Split
from llama import Llama
from speculate import ENDS, Count, speculative
from tokenizers import Tokenizer
from tqdm import tqdm


@dataclass
class Loss:
    """Cross-entropy of a set of documents."""

    nats: float = 0.0
    tokens: int = 0
    marker_nats: float = 0.0
    """Of the end-of-turn tokens and the newline after each, which other formats lack."""
    marker_tokens: int = 0
    size: int = 0
    """Bytes of the documents, without markers."""

    def figures(self) -> dict[str, float]:
        """Nats per token, the same of other token counts, and bits per byte.

        `as_plain`: all nats over the tokens that the text has where a newline alone ends a turn.
        """
        rest = self.tokens - self.marker_tokens
        plain = self.tokens - self.marker_tokens // 2
        return {
            "nats_per_token": round(self.nats / self.tokens, 4),
            "nats_per_token_as_plain": round(self.nats / plain, 4),
            "nats_per_token_without_turn_ends": round((self.nats - self.marker_nats) / rest, 4),
            "bits_per_byte": round(self.nats / math.log(2) / self.size, 4),
            "tokens": self.tokens,
            "bytes": self.size,
        }


@torch.inference_mode()
def document_loss(model: Llama, tokenizer: Tokenizer, documents: list[str]) -> Loss:
    """Loss of each document by itself after `<|endoftext|>`, its closing `<|endoftext|>` too.

    A document longer than the model's positions counts up to there.
    """
    out = Loss()
    rows = []
    for text in documents:
        ids = [t for t in tokenizer.encode(text).ids if t != END_OF_TEXT_ID]
        rows.append([END_OF_TEXT_ID, *ids, END_OF_TEXT_ID][: model.shape.positions + 1])
        out.size += len(text.replace(END_OF_TURN, "").encode("utf-8"))
    rows.sort(key=len)
    marker = tokenizer.token_to_id(END_OF_TURN)
    for at in tqdm(range(0, len(rows), 16), desc="loss", leave=False):
        group = rows[at : at + 16]
        width = max(map(len, group)) - 1
        x = torch.zeros(len(group), width, dtype=torch.long)
        y = torch.full((len(group), width), IGNORE)
        for index, row in enumerate(group):
            x[index, : len(row) - 1] = torch.tensor(row[:-1])
            y[index, : len(row) - 1] = torch.tensor(row[1:])
        nats = F.cross_entropy(model(x).transpose(1, 2), y, ignore_index=IGNORE, reduction="none")
        out.nats += nats.sum().item()
        out.tokens += int((y != IGNORE).sum())
        if marker is not None:
            marked = (y == marker) | ((x == marker) & (y != END_OF_TEXT_ID))
            marked &= y != IGNORE
            out.marker_nats += nats[marked].sum().item()
            out.marker_tokens += int(marked.sum())
    return out


def story_openings(tokenizer: Tokenizer, split: Split, count: int, words: int) -> list[list[int]]:
    """Prompts of the first `words` words of `count` stories, spread over the split."""
    picked = spread(split.stories, count)
    return [tokenizer.encode(" ".join(text.split(" ")[:words])).ids for text in picked]


def dialogue_contexts(tokenizer: Tokenizer, split: Split, count: int, turn: str) -> list[list[int]]:
    """Prompts of dialogues up to an `Assistant:` that is to speak, `turn` being what ends turns.

    The first, second, third or fourth reply in turn, where the dialogue has so many.
    """
    out = []
    for index, text in enumerate(spread(split.dialogues, count)):
        turns = text.split(turn)
        place = min(1 + 2 * (index % 4), 2 * (len(turns) // 2) - 1)
        out.append(tokenizer.encode(turn.join(turns[:place]) + turn + "Assistant:").ids)
    return out


def spread(items: list[str], count: int) -> list[str]:
    """`count` of the items, evenly spaced."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def loops(ids: list[int], size: int = 4, times: int = 4) -> bool:
    """Whether some run of `size` tokens occurs at least `times` times."""
    runs = Counter(tuple(ids[at : at + size]) for at in range(len(ids) - size + 1))
    return max(runs.values(), default=0) >= times


def stuck(ids: list[int], size: int = 24) -> bool:
    """Whether the text has gone round: its last `size` tokens stand earlier in it as well."""
    last = ids[-size:]
    return len(ids) > size and any(ids[at : at + size] == last for at in range(len(ids) - size))


@torch.inference_mode()
def agreement(draft: Llama, prompt: list[int], text: list[int]) -> list[int]:
    """How many tokens of the target's `text` are among the draft's first 1, 2, 3, 4 choices."""
    ids = torch.tensor([prompt + text])
    first = draft(ids)[0, len(prompt) - 1 : -1].topk(4).indices
    hit = (first == ids[0, len(prompt) :, None]).cumsum(-1).sum(0)
    return [int(value) for value in hit]


@torch.inference_mode()
def is_greedy(target: Llama, prompt: list[int], text: list[int]) -> bool:
    """Whether every token of `text` is the target's first choice."""
    ids = torch.tensor([prompt + text])
    choices = target(ids)[0, len(prompt) - 1 : -1].argmax(-1)
    return bool((choices == ids[0, len(prompt) :]).all())


def pair_figures(
    target: Llama,
    draft: Llama,
    prompts: list[list[int]],
    tokens: int,
    gamma: int,
    name: str,
    ends: tuple[int, ...] = ENDS,
) -> dict[str, float]:
    """Acceptance, agreement, loops and endings of a pair's greedy text over `prompts`."""
    count, hits = Count(), [0, 0, 0, 0]
    made = looped = gone_round = ended = exact = 0
    for prompt in tqdm(prompts, desc=name, leave=False):
        text, one = speculative(target, draft, prompt, tokens, gamma, ends)
        count.add(one)
        exact += is_greedy(target, prompt, text)
        hits = [a + b for a, b in zip(hits, agreement(draft, prompt, text), strict=True)]
        made += len(text)
        looped += loops(text)
        gone_round += stuck(text)
        ended += text[-1] in ends
    total = len(prompts)
    figures = {
        "prompts": total,
        "new_tokens_at_most": tokens,
        "new_tokens": made,
        "gamma": gamma,
        "drafted": count.drafted,
        "accepted": count.accepted,
        "accepted_per_drafted": round(count.accepted / count.drafted, 4),
        "tokens_per_round": round(made / count.rounds, 3),
    }
    for place in range(4):
        figures[f"agreement_top_{place + 1}"] = round(hits[place] / made, 4)
    figures["repeats_a_4_gram_4_times"] = round(looped / total, 4)
    figures["ends_in_a_cycle"] = round(gone_round / total, 4)
    figures["ended_by_itself"] = round(ended / total, 4)
    figures["all_the_targets_choice"] = round(exact / total, 4)
    return figures
