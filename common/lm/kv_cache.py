"""Keys and values of many sessions under one token budget.

Each session holds, for every layer, one contiguous buffer of keys and one of values, so that
attention reads a slice and copies nothing. Buffers grow a block at a time: a growth copies about
what one attention step reads anyway, and comes once in `BLOCK` tokens. The budget counts reserved
tokens, which is what memory is spent on. Sliding-window layers keep everything: rollback is then
a position and always exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import InternalError, OverloadedError

BLOCK = 64
"""Tokens by which a session's buffers grow."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """States what one layer stores for one token: `heads * (key_size + value_size)` numbers."""

    heads: int
    key_size: int
    value_size: int


@dataclass(slots=True)
class _Session:
    length: int = 0  # tokens held, 0 <= length <= reserved
    reserved: int = 0  # tokens the buffers have room for
    keys: list[Tensor] = field(default_factory=list)  # one a layer, [heads, reserved, key_size]
    values: list[Tensor] = field(default_factory=list)  # one a layer, [heads, reserved, value_size]


class KVCache:
    """Holds keys and values of many sessions; intervals of positions are half-open."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        capacity_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserves nothing yet: buffers are made as sessions grow."""
        self.layers = tuple(layers)
        self.capacity_tokens = capacity_tokens
        self.dtype = dtype
        self.device = torch.device(device)
        self._sessions: dict[int, _Session] = {}
        self._next_handle = 0
        self._used_tokens = 0

    @property
    def used_tokens(self) -> int:
        """Tokens reserved by all sessions."""
        return self._used_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that can still be reserved."""
        return self.capacity_tokens - self._used_tokens

    @property
    def bytes_per_token(self) -> int:
        """Bytes one token takes in all layers together."""
        numbers = sum(layer.heads * (layer.key_size + layer.value_size) for layer in self.layers)
        return numbers * self.dtype.itemsize

    @property
    def sessions(self) -> tuple[int, ...]:
        """Handles of the sessions held, oldest first."""
        return tuple(self._sessions)

    def allocate(self, tokens: int = 1) -> int:
        """Opens a session with room for `tokens`; raises OverloadedError when there is none."""
        handle = self._next_handle
        self._sessions[handle] = _Session()
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
        """Drops a session and gives its tokens back."""
        self._used_tokens -= self._get(session).reserved
        del self._sessions[session]

    def length(self, session: int) -> int:
        """Tokens the session holds."""
        return self._get(session).length

    def reserved(self, session: int) -> int:
        """Tokens the session has room for."""
        return self._get(session).reserved

    def reserve(self, lengths: Mapping[int, int]) -> None:
        """Makes room in every named session for the stated length, or in none.

        Raises OverloadedError when the budget does not suffice; nothing has changed then.
        """
        short = {h: n for h, n in lengths.items() if n > self._get(h).reserved}
        missing = sum(n - self._get(h).reserved for h, n in short.items())
        if missing > self.free_tokens:
            raise OverloadedError(
                f"the key/value cache has {self.free_tokens} of {self.capacity_tokens} tokens "
                f"free and {missing} more are needed: retry later, or raise cache_tokens"
            )
        for handle, length in short.items():
            missing -= length - self._get(handle).reserved
            # Round up to a block, but never into room another session of this call needs.
            rounded = -(-length // BLOCK) * BLOCK
            spare = self.free_tokens - missing
            self._grow(handle, min(rounded, self._get(handle).reserved + spare))

    def extend(self, session: int, tokens: int) -> None:
        """Lengthens a session by `tokens` whose keys and values are still to be written."""
        held = self._get(session)
        self.reserve({session: held.length + tokens})
        held.length += tokens

    def truncate(self, session: int, length: int) -> None:
        """Rolls a session back to its first `length` tokens; its room stays reserved."""
        held = self._get(session)
        if not 0 <= length <= held.length:
            raise InternalError(
                f"session {session} holds {held.length} tokens: cannot roll back to {length}"
            )
        held.length = length

    def write(self, session: int, layer: int, start: int, key: Tensor, value: Tensor) -> None:
        """Stores `[heads, n, size]` keys and values at positions [start, start + n)."""
        held = self._get(session)
        stop = start + key.shape[1]
        if not 0 <= start <= stop <= held.length:
            raise InternalError(
                f"session {session} holds {held.length} tokens: cannot write [{start}, {stop})"
            )
        held.keys[layer][:, start:stop] = key
        held.values[layer][:, start:stop] = value

    def read(self, session: int, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Views `[heads, stop - start, size]` keys and values of positions [start, stop)."""
        held = self._get(session)
        if not 0 <= start <= stop <= held.length:
            raise InternalError(
                f"session {session} holds {held.length} tokens: cannot read [{start}, {stop})"
            )
        return held.keys[layer][:, start:stop], held.values[layer][:, start:stop]

    def buffers(self, sessions: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Lists whole key and value buffers, layer by layer and in each one a session."""
        held = [self._get(session) for session in sessions]
        layers = range(len(self.layers))
        keys = [one.keys[layer] for layer in layers for one in held]
        return keys, [one.values[layer] for layer in layers for one in held]

    def check_integrity(self) -> None:
        """Raises InternalError, with the numbers, when the books do not balance."""
        reserved = sum(held.reserved for held in self._sessions.values())
        if reserved != self._used_tokens or not 0 <= reserved <= self.capacity_tokens:
            raise InternalError(
                f"cache books: {reserved} tokens reserved by sessions, {self._used_tokens} "
                f"counted as used, capacity {self.capacity_tokens}"
            )
        for handle, held in self._sessions.items():
            if not 0 <= held.length <= held.reserved:
                raise InternalError(
                    f"session {handle}: length {held.length}, reserved {held.reserved}"
                )
            for index, shape in enumerate(self.layers):
                want = (shape.heads, held.reserved, shape.key_size)
                if tuple(held.keys[index].shape) != want:
                    raise InternalError(
                        f"session {handle}, layer {index}: keys {tuple(held.keys[index].shape)}, "
                        f"expected {want}"
                    )
                want = (shape.heads, held.reserved, shape.value_size)
                if tuple(held.values[index].shape) != want:
                    raise InternalError(
                        f"session {handle}, layer {index}: values "
                        f"{tuple(held.values[index].shape)}, expected {want}"
                    )

    def _get(self, session: int) -> _Session:
        try:
            return self._sessions[session]
        except KeyError:
            raise InternalError(f"no session {session} in the key/value cache") from None

    def _grow(self, handle: int, reserved: int) -> None:
        held = self._get(handle)
        keys, values = [], []
        for index, shape in enumerate(self.layers):
            key = self._empty(shape.heads, reserved, shape.key_size)
            value = self._empty(shape.heads, reserved, shape.value_size)
            if held.length:
                key[:, : held.length] = held.keys[index][:, : held.length]
                value[:, : held.length] = held.values[index][:, : held.length]
            keys.append(key)
            values.append(value)
        # Swapped in only when all layers have succeeded, so that running out of memory on the
        # way leaves the session as it was.
        held.keys, held.values = keys, values
        self._used_tokens += reserved - held.reserved
        held.reserved = reserved

    def _empty(self, *shape: int) -> Tensor:
        try:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        except torch.OutOfMemoryError as error:
            raise OverloadedError(
                f"{self.device} has no memory left for the key/value cache, though its budget of "
                f"{self.capacity_tokens} tokens does: retry later, or lower cache_tokens"
            ) from error
