"""Which pages of the cache hold the beginning of which token sequences."""

from __future__ import annotations

from array import array
from collections.abc import KeysView, Sequence
from hashlib import sha256


class Prefixes:
    """Finds pages by all tokens up to their end, and by whose sessions they are."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def pages(self) -> KeysView[int]:
        """The pages that can be found."""
        return self._digest_of.keys()

    def digest(self, owner: str, before: Sequence[bytes], token_ids: Sequence[int]) -> bytes:
        """Digests the tokens of a page behind pages whose digests are given."""
        behind = before[-1] if before else sha256(owner.encode()).digest()
        return sha256(behind + array("q", token_ids).tobytes()).digest()

    def offer(self, digest: bytes, page: int) -> None:
        """Lets a page be found, unless another already is."""
        if self._page_of.setdefault(digest, page) == page:
            self._digest_of[page] = digest

    def find(self, digest: bytes) -> int | None:
        """Returns the page that holds these tokens, None where there is none."""
        return self._page_of.get(digest)

    def withdraw(self, page: int) -> None:
        """Has a page be found no more."""
        if (digest := self._digest_of.pop(page, None)) is not None:
            del self._page_of[digest]
