"""What a directory of safetensors files says about itself, read without loading the weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ModelError

_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WINDOW_BYTES = 4096
_WINDOWS = 4
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Locates one tensor: its bytes are [start, stop) of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def stored_tensors(directory: Path) -> list[StoredTensor]:
    """Lists the tensors of a checkpoint by name; raises ModelError when there are none."""
    tensors = [tensor for file in weight_files(directory) for tensor in _read_header(file)]
    return sorted(tensors, key=lambda tensor: tensor.name)


def weight_files(directory: Path) -> list[Path]:
    """Lists the safetensors files transformers would load; raises ModelError without any."""
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in names]
        if absent := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"{directory}: {index.name} names {absent[0]}, which is not there")
        return files
    raise ModelError(
        f"{directory} has no model.safetensors: only safetensors weights are loaded "
        "(convert others with transformers' save_pretrained)"
    )


def describe_dtype(tensors: list[StoredTensor]) -> str:
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


def fingerprint_model(config: dict[str, Any], tensors: list[StoredTensor]) -> str:
    """Hashes a model: sha256 over its configuration and its tensors as they are stored.

    Of every tensor come in its name, dtype, shape and bytes: all of them up to 16 KiB, otherwise
    four windows of 4 KiB spread evenly from its first byte to its last. A model of 28 GB is then
    hashed in about a second. Two models that differ only in bytes between the windows hash alike;
    fine-tuning, pruning and quantising touch every window. How the tensors are spread over files
    does not matter, nor do path, library version and the dtype they will be loaded in.
    """
    digest = hashlib.sha256()
    identity = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    digest.update(json.dumps(identity, sort_keys=True, default=str).encode())
    handles: dict[Path, int] = {}
    try:
        for tensor in tensors:
            digest.update(f"\n{tensor.name} {tensor.dtype} {tensor.shape}\n".encode())
            if tensor.file not in handles:
                handles[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            for start, length in _windows(tensor.start, tensor.stop):
                digest.update(os.pread(handles[tensor.file], length, start))
    finally:
        for handle in handles.values():
            os.close(handle)
    return digest.hexdigest()


def _windows(start: int, stop: int) -> Iterator[tuple[int, int]]:
    if stop - start <= _WINDOWS * _WINDOW_BYTES:
        yield start, stop - start
        return
    last = stop - _WINDOW_BYTES
    for index in range(_WINDOWS):
        yield start + (last - start) * index // (_WINDOWS - 1), _WINDOW_BYTES


def _read_header(file: Path) -> Iterator[StoredTensor]:
    # Format: 8 bytes little-endian length, then that much JSON, then the tensors' bytes
    # (https://huggingface.co/docs/safetensors/index#format).
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError(f"header of {length} bytes in a shorter file")
            header = json.loads(stream.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                shape = tuple(entry["shape"])
                yield StoredTensor(name, entry["dtype"], shape, file, start, stop)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} is not a readable safetensors file ({error}): fetch it again"
        ) from error
