"""Serialized messages spoiled: bytes that a client which follows the contract never sends."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

_MINUS_ONE = b"\xff" * 9 + b"\x01"  # -1 as protobuf writes an int64
_KINDS = ("flip", "cut", "repeat", "insert", "unknown field", "wrong type", "deep", "replace")


@dataclass(frozen=True)
class Damage:
    """Is one way of spoiling bytes; `at` counts from the start, modulo the length."""

    kind: str
    at: int
    junk: bytes

    def apply(self, data: bytes) -> bytes:
        """Returns the bytes as they go out."""
        at = self.at % (len(data) + 1)
        match self.kind:
            case "flip":
                mask = self.junk[0] | 1
                return data[:at] + bytes(byte ^ mask for byte in data[at : at + 1]) + data[at + 1 :]
            case "cut":
                return data[:at]
            case "repeat":
                return data + data[at:]
            case "insert":
                return data[:at] + self.junk + data[at:]
            case "unknown field":  # number 1000, of bytes: a reader skips it
                return data + b"\xc2\x3e" + bytes([len(self.junk)]) + self.junk
            case "wrong type":  # fields 1 and 2 as varint where messages are due
                return data + b"\x08\x07\x10" + _MINUS_ONE
            case "deep":  # groups in groups, beyond what a parser follows
                return data + b"\x0b" * 200
            case (
                "negative position"
            ):  # verify.position of a SessionRequest, which no uint32 can say
                return data + b"\x12\x0b\x10" + _MINUS_ONE
            case _:
                return self.junk


damages = st.builds(
    Damage,
    st.sampled_from(_KINDS),
    st.integers(0, 255),
    st.binary(min_size=1, max_size=6),
)
NEGATIVE_POSITION = Damage("negative position", 0, b"")
