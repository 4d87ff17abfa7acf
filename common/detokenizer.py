"""Token ids in, text out, piece by piece and never half a character."""

from __future__ import annotations

from typing import Protocol

from tokenizers import Tokenizer

_HALF = "\ufffd"  # what decoding writes for bytes that form no character


class HasBackend(Protocol):
    """Is what this needs of a transformers tokenizer: the Rust tokenizer inside it."""

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer."""


class Detokenizer:
    """Turns one sequence of token ids into text as it grows.

    Special tokens have no text. Bytes that do not yet form a character wait for
    the token that completes it; if none comes they are never shown. (This is what
    tokenizers' own DecodeStream does, but for bytes that turn out to form none:
    with byte-fallback vocabularies it raises at these.)
    """

    def __init__(self, tokenizer: HasBackend) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._token_ids: list[int] = []  # of the last piece, for context, and what came since
        self._given = 0  # how many of these have been given as text
        self._text = ""  # which they are

    def __call__(self, token_id: int) -> str:
        """Returns the text that this token completes, possibly empty."""
        self._token_ids.append(token_id)
        text = self._decode()
        if len(text) <= len(self._text) or text.endswith(_HALF):
            return ""
        piece = text[len(self._text) :]
        del self._token_ids[: self._given]
        self._given, self._text = len(self._token_ids), self._decode()
        return piece

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._token_ids, skip_special_tokens=True))
