"""Token ids in, text out, piece by piece and never half a character."""

from __future__ import annotations

from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class HasBackend(Protocol):
    """Is what this needs of a transformers tokenizer: the Rust tokenizer inside it."""

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer."""


class Detokenizer:
    """Turns one sequence of token ids into text as it grows.

    Special tokens have no text. Bytes that do not yet form a character wait for
    the token that completes it; if none comes they are never shown.
    """

    def __init__(self, tokenizer: HasBackend) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def __call__(self, token_id: int) -> str:
        """Returns the text that this token completes, possibly empty."""
        return self._stream.step(self._tokenizer, token_id) or ""
