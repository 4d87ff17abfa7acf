"""From text and chats to token ids, by the rules of the pair's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from common.errors import PromptError

Message = Mapping[str, str]
"""One message of a chat: `role` (system, user, assistant) and `content`."""


class Tokenizer(Protocol):
    """Is what this needs of a transformers tokenizer."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]:
        """Tokenizes; `verbose` False leaves out the notice about long texts."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """Writes a chat as text, up to where the reply begins."""
        ...


class TextEncoder:
    """Turns what a user writes into token ids; raises PromptError for what has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer knows how a chat is written."""
        return self._tokenizer.chat_template is not None

    def encode(self, text: str) -> tuple[int, ...]:
        """Encodes a text to be continued, with the special tokens the tokenizer itself adds."""
        return self._ids(text, special=True)

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Encodes a chat up to where the reply begins.

        Raises PromptError when the tokenizer has no chat template, or the template
        refuses the chat (an unknown role, two messages of one role in a row).
        """
        if not self.has_template:
            raise PromptError(
                "the tokenizer has no chat template; give plain text as `prompt`, "
                "or a model trained for chats"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [{**message} for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs: jinja2 raises whatever they meet
            raise PromptError(f"the chat template refuses this chat: {error}") from None
        # The template has written the special tokens already.
        return self._ids(text, special=False)

    def encode_turns(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Encodes a conversation as a chat, or line by line where there is no chat template."""
        if self.has_template:
            return self.encode_chat(messages)
        return self.encode("".join(f"{message['content']}\n" for message in messages))

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, or bytes that are no UTF-8
            raise PromptError(
                f"the prompt is not Unicode text: {text[error.start : error.end]!a} at character "
                f"{error.start} has no meaning of its own; mend or remove it"
            ) from None
        ids = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if not ids:
            raise PromptError("the prompt is empty; give it at least one token")
        return tuple(ids)
