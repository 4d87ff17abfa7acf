"""Finds where a computation would wait for a GPU, by what it asks of torch, on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = frozenset(
    {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
    | {"__array__", "__iter__", "__contains__", "equal", "allclose"}
)
"""Functions that need a tensor's numbers on the host."""
_SIZED_BY_NUMBERS = frozenset(
    f"aten.{name}"
    for name in (
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "bincount",
        "repeat_interleave",
        "_unique2",
        "unique_dim",
    )
)
"""Operations whose result's size, or course, depends on numbers."""


def waits(run: Callable[[], object]) -> Counter[str]:
    """Counts what would wait for the device in `run`, by name, as if all tensors lay there."""
    found: Counter[str] = Counter()
    with _Functions(found), _Operations(found):
        run()
    return found


class _Functions(TorchFunctionMode):
    """Sees what is asked of tensors in Python: reads, and copies from ordinary memory."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found
        self._on_host: list[Tensor] = []  # made of Python numbers, and not copied yet

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, given = getattr(func, "__name__", str(func)), kwargs or {}
        if name in _READS:
            self._found[name] += 1
        if name == "tensor" and given.get("device") is not None:
            self._found["tensor on a device"] += 1
        if name in ("to", "copy_") and not given.get("non_blocking"):
            source = args[name == "copy_"]
            if self._is_on_host(source) or "cpu" in [arg for arg in args if isinstance(arg, str)]:
                self._found["copy"] += 1
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) or self._is_on_host(part) for part in index):
                self._found["index from the host"] += 1
        result = func(*args, **given)
        if name == "tensor":
            self._on_host.append(result)
        return result if name != "to" or result is not args[0] else result.view(result.shape)

    def _is_on_host(self, given: object) -> bool:
        return any(given is tensor for tensor in self._on_host)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what torch does below: operations sized by numbers, also inside others."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func).rsplit(".", 1)[0]
        masked = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in _SIZED_BY_NUMBERS or masked:
            self._found[name] += 1
        return func(*args, **(kwargs or {}))
