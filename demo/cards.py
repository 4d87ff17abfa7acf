"""The model cards and the table of `demo/README.md`, filled in from `results.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FRONT = """---
license: cc-by-sa-4.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, speculative-decoding, demonstration]
---
"""

DATA = """## Data and licences

| corpus | used for | source | licence |
|---|---|---|---|
| TinyStories, a subset of 6,917 stories | stories | Ronen Eldan and Yuanzhi Li, *TinyStories: How \
Small Can Language Models Be and Still Speak Coherent English?*, 2023 (arXiv:2305.07759) | \
CDLA-Sharing-1.0 |
| Schema-Guided Dialogue, utterances only | dialogues | Abhinav Rastogi, Xiaoxue Zang, Srinivas \
Sunkara, Raghav Gupta and Pranav Khaitan, *Towards Scalable Multi-domain Conversational Agents: \
The Schema-Guided Dialogue Dataset*, 2020 (arXiv:1909.05855), \
google-research-datasets/dstc8-schema-guided-dialogue | CC BY-SA 4.0 |

The weights and the tokenizer are given under **CC BY-SA 4.0**, with the attributions above; the \
dialogues were changed by marking the end of every turn. CDLA-Sharing-1.0 asks nothing of results \
computed from its data, such as these weights; the stories' authors are named all the same. No \
text of the corpora is in this folder.

Held out from training: the last 5 % of the stories, and the development file of the dialogues \
(which also has services that the training file lacks).
"""

FORMAT = """## Format

Llama architecture, float32 safetensors, tied embeddings, {positions} positions, a byte-level BPE \
tokenizer of 4,096 entries shared by target and draft. `<|endoftext|>` (id 0) stands before every \
document and `<|endofturn|>` (id 1) ends every turn; both end a generation.

* A prompt starts with `<|endoftext|>`. The tokenizer adds it by itself, so a story opening is \
given as it is.
* The chat template writes `<|endoftext|>` too: tokenise what it renders with \
`add_special_tokens=False` (`apply_chat_template(..., tokenize=True)` does).
* A conversation reads `User: ...<|endofturn|>`, newline, `Assistant: ...<|endofturn|>`, newline, \
and so on; a reply is asked for by ending in `Assistant:`. A reply begins with a blank.
"""


def table(results: dict[str, Any], name: str) -> str:
    """Held-out loss of one model."""
    lines = [
        "| held-out text | tokens | nats / token | as plain text | without turn ends "
        "| bits / byte |",
        "|---|---|---|---|---|---|",
    ]
    for part, one in results[name]["held_out"].items():
        lines.append(
            f"| {part} | {one['tokens']:,} | {one['nats_per_token']:.3f} | "
            f"{one['nats_per_token_as_plain']:.3f} | "
            f"{one['nats_per_token_without_turn_ends']:.3f} | {one['bits_per_byte']:.3f} |"
        )
    return "\n".join(lines)


def pair_table(results: dict[str, Any]) -> str:
    """Figures of greedy speculative decoding."""
    rows = (
        ("accepted / drafted, γ = 4", "accepted_per_drafted"),
        ("tokens a round, γ = 4", "tokens_per_round"),
        ("target's choice is the draft's first", "agreement_top_1"),
        ("... among its first 2", "agreement_top_2"),
        ("... among its first 3", "agreement_top_3"),
        ("... among its first 4", "agreement_top_4"),
        ("texts that repeat a run of 4 tokens 4 times", "repeats_a_4_gram_4_times"),
        ("texts that end in a cycle (24 tokens seen before)", "ends_in_a_cycle"),
        ("texts that end by themselves", "ended_by_itself"),
        ("texts of which every token is the target's choice", "all_the_targets_choice"),
    )
    parts = [results[name] for name in ("stories", "dialogues", "dialogues_run_on")]
    lines = ["| greedy | stories | replies | dialogues run on |", "|---|---|---|---|"]
    for label, key in (
        ("held-out prompts", "prompts"),
        ("new tokens at most", "new_tokens_at_most"),
    ):
        lines.append(f"| {label} | " + " | ".join(str(part[key]) for part in parts) + " |")
    for label, key in rows:
        lines.append(f"| {label} | " + " | ".join(f"{part[key]:.3f}" for part in parts) + " |")
    share = parts[0]["corpus_repeats_a_4_gram_4_times"]
    lines += [
        "",
        "Of the held-out stories themselves, from the same openings on and cut at the same "
        f"length, {share:.3f} repeat a run of 4 tokens 4 times.",
    ]
    return "\n".join(lines)


def training(folder: Path) -> str:
    """Steps, tokens and time of a training run, from the curve kept beside the model."""
    kept = json.loads((folder / "training_curve.json").read_text(encoding="utf-8"))
    last = kept["curve"][-1]
    return (
        f"{last['step']:,} steps of {kept['plan']['batch']:,} tokens "
        f"({last['tokens'] / 1e6:.1f} M tokens), {last['seconds'] / 60:.0f} minutes on two "
        "processor cores"
    )


def loops(folder: Path) -> str:
    """What the step against repetitions did to the target."""
    kept = json.loads((folder / "training_curve.json").read_text(encoding="utf-8"))["loops"]
    plan, rounds = kept["plan"], kept["rounds"]
    return (
        f"Then {plan['rounds']} rounds of {plan['steps']} steps by `demo/train.py loops`. In each "
        f"the target writes {plan['stories']:,} stories after openings of the training split, "
        f"greedily, but leaves out a word that would complete a run of {plan['run']} tokens for "
        f"the {('second', 'third', 'fourth')[plan['times'] - 1]} time; what it would say under "
        f"that rule is what it learns, {plan['own']:,} tokens a step beside {plan['corpus']:,} of "
        "corpus text. The rule changed "
        + ", ".join(f"{100 * one['rule_changed']:.2f}" for one in rounds)
        + " % of the tokens that it wrote in these rounds."
    )


def shape(folder: Path) -> str:
    """The shape of a model in words."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (
        f"{config['num_hidden_layers']} layers of {config['hidden_size']}, feed-forward "
        f"{config['intermediate_size']}, {config['num_attention_heads']} heads "
        f"({config['num_key_value_heads']} for keys and values)"
    )


def target_card(pair: Path, results: dict[str, Any]) -> str:
    """The target's model card."""
    folder = pair / "target"
    shown = "\n\n".join(
        f"> **{one['prompt']}**{one['text']}".replace("\n", "\n> ") for one in results["samples"]
    )
    return f"""{FRONT}
# Outrider demonstration target

A small language model that writes children's stories and answers in task-oriented dialogues \
(restaurants, flights, hotels, weather, ...). It exists to show speculative decoding with the \
draft beside it; it knows nothing of the world, and the addresses, prices and names it says are \
invented.

{results["target"]["parameters"]:,} parameters: {shape(folder)}.

{FORMAT.format(positions="1,024")}
## Training

{training(folder)}, from nothing, by `demo/train.py target`: half stories, half dialogues, Muon \
for the matrices and AdamW for the rest, rate constant and then linearly to zero, bfloat16 \
arithmetic on float32 weights, no dropout. (The run was stopped and resumed several times on a \
busy machine, with the number of steps still being fixed; in steps 750 to 1,000 its rates were up \
to a quarter below what the script now gives.)

{loops(folder)} (Between the two, the shipped weights went through two rounds of 50 steps of \
another kind, in which tokens that repeated a run were made less probable; the script does not do \
that any more.)

![loss](training_curve.svg)

{table(results, "target")}

A turn ends with `<|endofturn|>` and a newline, where plain text has the newline alone. "As plain \
text" shares out the same loss over the tokens of the plain text; "without turn ends" leaves both \
markers out. Bits per byte count everything against the bytes of the plain text.

## Samples (greedy; prompts in bold are our own)

{shown}

{DATA}"""


def draft_card(pair: Path, results: dict[str, Any]) -> str:
    """The draft's model card."""
    folder = pair / "draft"
    return f"""{FRONT}
# Outrider demonstration draft

The draft for the target beside it: it proposes tokens that the target checks. \
{results["draft"]["parameters"]:,} parameters: {shape(folder)}.

{FORMAT.format(positions="1,024")}
## Training

{training(folder)}, by `demo/train.py draft`: first on corpus text, then mostly on greedy text \
that the target itself wrote after openings and contexts of the training split. It learns what \
the target would say next (its eight most probable tokens at every place) and, with a further \
cross-entropy, the target's first choice. (The shipped draft \
went on from earlier ones: 6,800 steps learned from the target before its last training, then \
2,800 from this one, then the steps above, with rates of 0.015 and 0.003 at most; nine tenths of \
these were the target's own text, a fifth of that stories.)

![loss](training_curve.svg)

{pair_table(results)}

Its loss on held-out corpus text (which it was not trained to make small at the end):

{table(results, "draft")}

{DATA}"""


def write_cards(pair: Path, results: dict[str, Any]) -> None:
    """Write both cards, and put the figures between the marks of the pair's `README.md`."""
    (pair / "target" / "README.md").write_text(target_card(pair, results), encoding="utf-8")
    (pair / "draft" / "README.md").write_text(draft_card(pair, results), encoding="utf-8")
    readme = pair / "README.md"
    if readme.is_file():
        body = "\n\n".join(("", pair_table(results), "Target:", table(results, "target"), "Draft:"))
        body = f"{body}\n\n{table(results, 'draft')}\n\n"
        text = readme.read_text(encoding="utf-8")
        text = re.sub(
            r"(<!-- figures -->).*(<!-- end of figures -->)",
            lambda match: match[1] + body + match[2],
            text,
            flags=re.DOTALL,
        )
        readme.write_text(text, encoding="utf-8")
