"""From text and chats to token ids."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from common.errors import PromptError
from edge_client.text import TextEncoder
from tests.models import EOS, tiny_tokenizer
from tests.unit.edge.pair import text_of

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How are you?"},
]


def tokenizer(template: str | None) -> Any:
    """Returns a tokenizer that puts the end-of-text token before every text."""
    changed: Any = copy.deepcopy(tiny_tokenizer())
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, 0)]
    )
    changed.chat_template = template
    return changed


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_a_text_has_the_special_tokens_its_tokenizer_adds() -> None:
    ids = TextEncoder(tokenizer(None)).encode("Hello there")
    assert ids[0] == 0
    assert text_of(ids[1:]) == "Hello there"


def test_a_chat_is_written_by_the_template_and_nothing_is_added() -> None:
    ids = TextEncoder(tokenizer(TEMPLATE)).encode_chat(CHAT)
    assert text_of(ids) == "user:Hello\nassistant:Hi\nuser:How are you?\nassistant:"


def test_a_chat_without_a_template_is_refused() -> None:
    with pytest.raises(PromptError, match="no chat template; give plain text"):
        TextEncoder(tokenizer(None)).encode_chat(CHAT)


def test_a_template_that_refuses_says_why() -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="refuses this chat: roles must alternate"):
        TextEncoder(tokenizer(strict)).encode_chat(CHAT)


def test_turns_take_the_template_where_there_is_one_and_lines_otherwise() -> None:
    chat = TextEncoder(tokenizer(TEMPLATE))
    assert chat.encode_turns(CHAT) == chat.encode_chat(CHAT)
    plain = TextEncoder(tokenizer(None))
    assert plain.encode_turns(CHAT) == plain.encode("Hello\nHi\nHow are you?\n")


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        TextEncoder(tiny_tokenizer()).encode("")


@pytest.mark.parametrize("text", ["a \ud83d b", "caf\udce9"])
def test_a_text_that_is_no_unicode_is_refused_by_place(text: str) -> None:
    with pytest.raises(PromptError, match=r"'\\ud[0-9a-f]{3}' at character [23] "):
        TextEncoder(tiny_tokenizer()).encode(text)


def test_a_text_longer_than_the_model_draws_no_notice(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    short = tokenizer(None)
    short.model_max_length = 4
    assert len(TextEncoder(short).encode("a b c d e f g")) > 4
    assert capsys.readouterr().err == ""
    assert caplog.records == []
