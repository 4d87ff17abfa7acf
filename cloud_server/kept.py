"""Caches that outlive their session, for the next turn of the same conversation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

from common.errors import OverloadedError
from common.lm.kv_cache import KVCache

Reserved = TypeVar("Reserved")

Conversation = tuple[str, bytes]
"""A client, and the name it gave the conversation: nobody else is served from it."""

MOST_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Kept:
    session: int
    token_ids: Sequence[int]


class KeptCaches:
    """Lends a budget what it does not need: caches of sessions that have ended, latest last.

    They give way to any session that needs their room. On the engine thread only.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._kept: OrderedDict[Conversation, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, conversation: Conversation, session: int, token_ids: Sequence[int]) -> None:
        """Takes over a session whose cache begins with these tokens, as far as it goes."""
        self._drop(conversation)
        self._cache.withhold(session)  # one turn of a conversation never speeds another's up
        self._kept[conversation] = _Kept(session, token_ids[: self._cache.length(session)])
        if len(self._kept) > MOST_KEPT:
            self._drop(next(iter(self._kept)))

    def allocate(
        self,
        tokens: int,
        conversation: Conversation | None = None,
        prompt: Sequence[int] = (),
        client: str | None = None,
    ) -> int:
        """Opens a session of a client with room for `tokens`, holding what is known of its prompt.

        Raises OverloadedError when there is no room with nothing kept.
        """
        kept = None if conversation is None else self._kept.pop(conversation, None)
        if kept is None:
            return self._with_room(lambda: self._cache.allocate(tokens, client))
        known = sum(takewhile(bool, (a == b for a, b in zip(kept.token_ids, prompt, strict=False))))
        self._cache.truncate(kept.session, known)
        try:
            self._with_room(lambda: self._cache.reserve({kept.session: tokens}))
        except OverloadedError:
            self._cache.free(kept.session)
            raise
        return kept.session

    def _with_room(self, reserve: Callable[[], Reserved]) -> Reserved:
        """Reserves, after dropping as few as there must be."""
        while True:
            try:
                return reserve()
            except OverloadedError:
                if not self._kept:
                    raise
                self._drop(next(iter(self._kept)))

    def _drop(self, conversation: Conversation) -> None:
        if (kept := self._kept.pop(conversation, None)) is not None:
            self._cache.free(kept.session)
