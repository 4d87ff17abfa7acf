"""Keys and values of many sessions in pages of one pool, under one token budget.

A session holds a list of pages. Those that begin its sequence may be held by others whose
sequences begin alike; they are written by nobody, and a session that goes back behind their end
goes on in pages of its own. Sliding-window layers keep everything: rollback is then a position and
always exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import InternalError, OverloadedError
from common.lm.pages import PAGE, LayerShape, Pages
from common.lm.prefixes import Prefixes


@dataclass(slots=True)
class _Session:
    owner: str | None  # whose sessions it shares pages with; None: with nobody's
    length: int = 0  # tokens held, 0 <= length <= PAGE * len(pages)
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of the pages told to be its first ones
    runs: tuple[int, ...] = ()  # its pages as the kernels read them, see `places`


class KVCache:
    """Holds keys and values of many sessions; intervals of positions are half-open.

    The token at position p of a session lies at `pages[p // PAGE] * PAGE + p % PAGE` of
    `keys[layer]`, `[heads, capacity_tokens, key_size]`, and of `values[layer]`.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        capacity_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Makes the pool, of whole pages; raises ConfigError where there is no memory for it."""
        self.layers = tuple(layers)
        self.dtype = dtype
        self.device = torch.device(device)
        self._pages = Pages(self.layers, capacity_tokens, dtype, self.device)
        self.capacity_tokens = PAGE * self._pages.number
        self.keys, self.values = self._pages.keys, self._pages.values
        self._prefixes = Prefixes()
        self._sessions: dict[int, _Session] = {}
        self._next_handle = 0

    @property
    def used_tokens(self) -> int:
        """Tokens reserved by all sessions, in whole pages, each counted once."""
        return self.capacity_tokens - self.free_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that can still be reserved."""
        return PAGE * self._pages.num_free

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers together."""
        return self._pages.bytes_per_token

    @property
    def sessions(self) -> tuple[int, ...]:
        """Handles of the sessions held, oldest first."""
        return tuple(self._sessions)

    def allocate(self, tokens: int = 1, owner: str | None = None) -> int:
        """Opens a session with room for `tokens`; raises OverloadedError when there is none.

        It may share what it begins with among the sessions of `owner`, see `adopt`.
        """
        handle = self._next_handle
        self._sessions[handle] = _Session(owner)
        try:
            self.reserve({handle: tokens})
        except BaseException:
            self.free(handle)
            raise
        self._next_handle += 1
        return handle

    @contextmanager
    def session(self, tokens: int = 1) -> Iterator[int]:
        """Opens a session for the length of a `with` block."""
        handle = self.allocate(tokens)
        try:
            yield handle
        finally:
            self.free(handle)

    def free(self, session: int) -> None:
        """Drops a session and gives back the pages that no other holds."""
        for page in self._get(session).pages:
            self._let_go(page)
        del self._sessions[session]

    def length(self, session: int) -> int:
        """Tokens the session holds."""
        return self._get(session).length

    def reserved(self, session: int) -> int:
        """Tokens the session has room for."""
        return PAGE * len(self._get(session).pages)

    def pages(self, session: int) -> list[int]:
        """The session's pages, in the order of its tokens."""
        return list(self._get(session).pages)

    def reserve(self, lengths: Mapping[int, int]) -> None:
        """Makes room in every named session for the stated length, or in none.

        Raises OverloadedError when the budget does not suffice; nothing has changed then.
        """
        self._make_room({h: (self._get(h).length, n) for h, n in lengths.items()})

    def place(self, spans: Mapping[int, tuple[int, int]]) -> None:
        """Has every named session hold its tokens up to a position, and room for more to an end.

        Those in between are still to be written, and lie in pages of its own. Raises
        OverloadedError when the budget does not suffice; nothing has changed then.
        """
        for session, (start, end) in spans.items():
            if not 0 <= start <= min(end, self._get(session).length):
                raise InternalError(
                    f"session {session} holds {self._get(session).length} tokens: cannot continue "
                    f"from {start}"
                )
        self._make_room(spans)
        for session, (_, end) in spans.items():
            self._get(session).length = end

    def extend(self, session: int, tokens: int) -> None:
        """Lengthens a session by `tokens` whose keys and values are still to be written."""
        length = self._get(session).length
        self.place({session: (length, length + tokens)})

    def truncate(self, session: int, length: int) -> None:
        """Rolls a session back to its first `length` tokens; its room stays reserved."""
        held = self._get(session)
        if not 0 <= length <= held.length:
            raise InternalError(
                f"session {session} holds {held.length} tokens: cannot roll back to {length}"
            )
        held.length = length

    def publish(self, session: int, token_ids: Sequence[int], count: int) -> None:
        """Lets others of the same owner share the whole pages of its first `count` tokens.

        `token_ids` begins with these.
        """
        held = self._get(session)
        if held.owner is None:
            return
        whole = min(held.length, count) // PAGE
        for index in range(len(held.digests), whole):
            tokens = token_ids[index * PAGE : (index + 1) * PAGE]
            digest = self._prefixes.digest(held.owner, held.digests, tokens)
            held.digests.append(digest)
            self._prefixes.offer(digest, held.pages[index])

    def adopt(self, session: int, token_ids: Sequence[int], count: int) -> int:
        """Goes on in pages of others, as far as they hold what follows in `token_ids`.

        Holds at most its first `count` then; the session's own are these as far as they go.
        Returns how many it holds.
        """
        held = self._get(session)
        if held.owner is None or held.length != PAGE * len(held.digests):
            return held.length
        for index in range(len(held.digests), min(len(held.pages), count // PAGE)):
            tokens = token_ids[index * PAGE : (index + 1) * PAGE]
            digest = self._prefixes.digest(held.owner, held.digests, tokens)
            page = self._prefixes.find(digest)
            if page is None:
                break
            self._let_go(held.pages[index])
            self._pages.hold(page)
            held.pages[index] = page
            held.digests.append(digest)
            held.length += PAGE
            held.runs = ()
        return held.length

    def withhold(self, session: int) -> None:
        """Lets nobody more share the pages of a session."""
        for page in self._get(session).pages:
            self._prefixes.withdraw(page)

    def places(self, session: int) -> tuple[int, ...]:
        """Says where a session's pages lie, for the kernels: their runs, each (first, tokens)."""
        held = self._get(session)
        if not held.runs:
            runs: list[int] = []
            for page in held.pages:
                if runs and page * PAGE == runs[-2] + runs[-1]:
                    runs[-1] += PAGE
                else:
                    runs += (page * PAGE, PAGE)
            held.runs = (len(runs) // 2, *runs)
        return held.runs

    def write(self, session: int, layer: int, start: int, key: Tensor, value: Tensor) -> None:
        """Stores `[heads, n, size]` keys and values at positions [start, start + n)."""
        at = 0
        for place in self._slices(session, start, start + key.shape[1], "write"):
            n = place.stop - place.start
            self.keys[layer][:, place] = key[:, at : at + n]
            self.values[layer][:, place] = value[:, at : at + n]
            at += n

    def read(self, session: int, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Returns `[heads, stop - start, size]` keys and values of positions [start, stop).

        Views, where the pages lie together.
        """
        places = self._slices(session, start, stop, "read")
        if len(places) == 1:
            return self.keys[layer][:, places[0]], self.values[layer][:, places[0]]
        keys, values = (
            torch.cat([pool[:, place] for place in places], 1) if places else pool[:, :0]
            for pool in (self.keys[layer], self.values[layer])
        )
        return keys, values

    def check_integrity(self) -> None:
        """Raises InternalError, with the numbers, when the books do not balance."""
        held = Counter(page for one in self._sessions.values() for page in one.pages)
        self._pages.check_integrity(held)
        if stray := self._prefixes.pages - held.keys():
            raise InternalError(f"cache books: pages {sorted(stray)} are shared and held by nobody")
        for handle, one in self._sessions.items():
            if not 0 <= one.length <= PAGE * len(one.pages):
                raise InternalError(
                    f"session {handle}: length {one.length}, reserved {PAGE * len(one.pages)}"
                )

    def _get(self, session: int) -> _Session:
        try:
            return self._sessions[session]
        except KeyError:
            raise InternalError(f"no session {session} in the key/value cache") from None

    def _make_room(self, spans: Mapping[int, tuple[int, int]]) -> None:
        missing = sum(self._missing(self._get(h), *span) for h, span in spans.items())
        if missing > self._pages.num_free:
            raise OverloadedError(
                f"the key/value cache has {self.free_tokens} of {self.capacity_tokens} tokens "
                f"free and {PAGE * missing} more are needed, in pages of {PAGE}: retry later, or "
                "raise cache_tokens"
            )
        for session, (start, end) in spans.items():
            held = self._get(session)
            self._part(held, start)
            while PAGE * len(held.pages) < end:
                held.pages.append(self._pages.take())
                held.runs = ()

    def _missing(self, held: _Session, start: int, end: int) -> int:
        """Counts the pages a session needs to be written from `start` to `end`."""
        shared = held.pages[start // PAGE : len(held.digests)]
        grown = -(-end // PAGE) - len(held.pages)
        return sum(map(self._pages.is_shared, shared)) + max(0, grown)

    def _part(self, held: _Session, start: int) -> None:
        """Has a session share no page it may write from `start` on."""
        first = start // PAGE
        for index in range(first, len(held.digests)):
            page = held.pages[index]
            self._prefixes.withdraw(page)
            if self._pages.is_shared(page):
                held.pages[index] = own = self._pages.take()
                if index == first:
                    self._pages.copy(page, own, start - index * PAGE)
                self._let_go(page)
                held.runs = ()
        del held.digests[first:]

    def _let_go(self, page: int) -> None:
        if self._pages.let_go(page):
            self._prefixes.withdraw(page)

    def _slices(self, session: int, start: int, stop: int, what: str) -> list[slice]:
        """Returns where positions [start, stop) of a session lie in the pool."""
        held = self._get(session)
        if not 0 <= start <= stop <= held.length:
            raise InternalError(
                f"session {session} holds {held.length} tokens: cannot {what} [{start}, {stop})"
            )
        slices, at = [], 0
        runs = self.places(session)[1:]
        for first, tokens in zip(runs[::2], runs[1::2], strict=True):
            low, high = max(start, at), min(stop, at + tokens)
            if low < high:
                slices.append(slice(first + low - at, first + high - at))
            at += tokens
        return slices
