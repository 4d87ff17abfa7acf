"""What a directory of weights says about itself, read without loading them into a model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypeAlias

from common.errors import ModelError
from common.lm.pickled import PickledTensor, read_pickled

_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_WINDOW_BYTES = 4096
_WINDOWS = 4
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Locates one tensor: its bytes are [start, stop) of `file`, a file mapped into memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: mmap
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stop - self.start

    def read(self, start: int, length: int) -> bytes:
        """Reads `length` of its bytes from `start` on."""
        return self.file[self.start + start : self.start + start + length]


Stored: TypeAlias = StoredTensor | PickledTensor


def stored_tensors(directory: Path, *, allow_pickle: bool = False) -> list[Stored]:
    """Lists the tensors of a checkpoint by name; raises ModelError when there are none.

    Safetensors come first; pickled files are opened only where `allow_pickle` says so.
    """
    tensors: list[Stored] = []
    if files := _weight_files(directory, _SAFE):
        tensors += [tensor for file in files for tensor in _read_header(file)]
    elif allow_pickle and (files := _weight_files(directory, _PICKLED)):
        tensors += [tensor for file in files for tensor in read_pickled(file)]
    else:
        raise ModelError(
            f"{directory} has no {_SAFE}: only safetensors weights are loaded, unless "
            f"cloud.allow_pickle=true or edge.allow_pickle=true lets {_PICKLED} in at the end "
            "that loads it (convert others with transformers' save_pretrained)"
        )
    return sorted(tensors, key=lambda tensor: tensor.name)


def has_safetensors(directory: Path) -> bool:
    """Says whether a directory holds safetensors weights."""
    return bool(_weight_files(directory, _SAFE))


def _weight_files(directory: Path, name: str) -> list[Path]:
    """Lists the files transformers would load, of the format whose single file is `name`."""
    single = directory / name
    if single.is_file():
        return [single]
    index = directory / f"{name}.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in names]
        if absent := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"{directory}: {index.name} names {absent[0]}, which is not there")
        return files
    return []


def describe_dtype(tensors: Sequence[Stored]) -> str:
    """Names the floating dtype of a checkpoint, or all of them with their share of the numbers."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype.startswith(("F", "BF")):
            size = 1
            for extent in tensor.shape:
                size *= extent
            sizes[_DTYPE_NAMES.get(tensor.dtype, tensor.dtype)] += size
    if len(sizes) == 1:
        return next(iter(sizes))
    total = sum(sizes.values()) or 1
    parts = [f"{name} {100 * size / total:.3g}%" for name, size in sizes.most_common()]
    return f"mixed ({', '.join(parts)})" if parts else "none"


def fingerprint_model(config: dict[str, Any], tensors: Sequence[Stored]) -> str:
    """Hashes a model: sha256 over its configuration and its tensors as they are stored.

    Of every tensor come in its name, dtype, shape and bytes: all of them up to 16 KiB, otherwise
    four windows of 4 KiB spread evenly from its first byte to its last. A model of 28 GB is then
    hashed in about a second. Two models that differ only in bytes between the windows hash alike;
    fine-tuning, pruning and quantising touch every window. How the tensors are spread over files
    and in which format does not matter, nor do path, library version and the dtype they will be
    loaded in.
    """
    digest = hashlib.sha256()
    identity = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    digest.update(json.dumps(identity, sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(f"\n{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
        for start, length in _windows(tensor.size):
            digest.update(tensor.read(start, length))
    return digest.hexdigest()


def _windows(size: int) -> Iterator[tuple[int, int]]:
    if size <= _WINDOWS * _WINDOW_BYTES:
        yield 0, size
        return
    last = size - _WINDOW_BYTES
    for index in range(_WINDOWS):
        yield last * index // (_WINDOWS - 1), _WINDOW_BYTES


def _read_header(file: Path) -> Iterator[StoredTensor]:
    # Format: 8 bytes little-endian length, then that much JSON, then the tensors' bytes
    # (https://huggingface.co/docs/safetensors/index#format).
    try:
        with file.open("rb") as stream:
            content = mmap(stream.fileno(), 0, access=ACCESS_READ)
        length = int.from_bytes(content[:8], "little")
        if length > len(content):
            raise ValueError(f"header of {length} bytes in a shorter file")
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            yield StoredTensor(name, entry["dtype"], shape, content, start, stop)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} is not a readable safetensors file ({error}): fetch it again"
        ) from error
