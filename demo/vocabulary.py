"""Training the byte-level BPE tokenizer, and its chat template."""

from __future__ import annotations

import logging
from pathlib import Path

from corpora import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    END_OF_TURN,
    END_OF_TURN_ID,
    MissingError,
    Split,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

log = logging.getLogger("demo")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ 'User: ' if message['role'] == 'user' else 'Assistant: ' }}"
    "{{ message['content'] | trim }}<|endofturn|>{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Renders a conversation byte for byte as the training text has it."""


def train_tokenizer(split: Split, entries: int, folder: Path) -> None:
    """Train a tokenizer of exactly `entries` entries on the training split and save its files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END_OF_TEXT, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*split.stories, *split.dialogues], trainer)
    assert tokenizer.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    assert tokenizer.token_to_id(END_OF_TURN) == END_OF_TURN_ID
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    log.info("tokenizer of %d entries in %s", tokenizer.get_vocab_size(), folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise MissingError(f"no tokenizer {file}: train it first, with the step `tokenizer`")
    return Tokenizer.from_file(str(file))
