"""What a pickled checkpoint holds, read with torch's restricted unpickler: tensors, no code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import ModelError
from common.lm.wording import brief

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes as safetensors names them, so that a model has one fingerprint in both formats."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """Is one tensor of a pickled file, mapped into memory where the file allows it."""

    name: str
    tensor: Tensor

    @property
    def dtype(self) -> str:
        """Its dtype as safetensors would name it."""
        return _DTYPES.get(self.tensor.dtype, str(self.tensor.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extents."""
        return tuple(self.tensor.shape)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.tensor.nbytes

    def read(self, start: int, length: int) -> bytes:
        """Reads `length` of its bytes from `start` on."""
        flat = self.tensor.detach().reshape(-1).view(torch.uint8)
        return flat[start : start + length].numpy().tobytes()


def read_pickled(file: Path) -> Iterator[PickledTensor]:
    """Lists the tensors of a file; raises ModelError for anything that is no dict of tensors."""
    try:
        content = _load(file)
    except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError and others
        raise ModelError(
            f"{file} is not a readable file of pickled weights ({brief(error)}): fetch it again, "
            "or use safetensors"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{file} holds something else than named tensors; use safetensors")
    for name, tensor in content.items():
        yield PickledTensor(str(name), tensor)


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files of torch before 1.6 cannot be mapped
        return torch.load(file, map_location="cpu", weights_only=True)
