"""Token ids in, text out: characters whole, and no sequence of bytes that it cannot take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from common.detokenizer import Detokenizer

WORDS = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁cat", "a", "▁"]
IDS = {word: index for index, word in enumerate(WORDS)}


def byte_fallback() -> Any:
    """Returns a tokenizer as Llama 2, Mistral and Gemma have it: bytes are tokens of their own."""
    tokenizer = Tokenizer(models.BPE(IDS, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return SimpleNamespace(backend_tokenizer=tokenizer)


def pieces(*words: str) -> list[str]:
    detokenize = Detokenizer(byte_fallback())
    return [detokenize(IDS[word]) for word in words]


def test_a_character_waits_for_its_last_byte() -> None:
    assert pieces("a", "<0xC3>", "<0xA9>", "▁cat") == ["a", "", "é", " cat"]


@pytest.mark.parametrize("broken", [["<0xFF>"], ["<0xC3>", "<0xA9>", "<0xFF>"], ["<0xE2>"] * 3])
def test_bytes_that_form_no_character_do_not_stop_the_text(broken: list[str]) -> None:
    assert pieces("a", *broken, "▁cat")[-1].endswith(" cat")


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=40))
def test_no_sequence_of_tokens_is_too_strange(token_ids: list[int]) -> None:
    detokenize = Detokenizer(byte_fallback())
    for token_id in token_ids:
        assert not detokenize(token_id).endswith("\ufffd")
