"""The precision policy: apply it, read it back, and prove it on a running model.

A float32 run means float32 products with float32 sums. Several switches quietly trade that away
(TF32 tensor cores, bfloat16 passes in oneDNN, half-precision sums), so all are set to exact and
then read back from torch. What was read, not what was wished, goes into reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The precisions a model can be run in, by name."""


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """Holds the settings in force, as torch reports them; `exact` says they are all exact."""

    settings: dict[str, str]
    exact: bool


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Counts the floating-point tensors each operation produced, by (operation, dtype)."""

    counts: dict[tuple[str, torch.dtype], int]

    @property
    def dtypes(self) -> dict[str, int]:
        """Tensors produced in each dtype, over all operations."""
        totals: Counter[str] = Counter()
        for (_, dtype), count in self.counts.items():
            totals[dtype_name(dtype)] += count
        return dict(totals)

    def offenders(self, allowed: torch.dtype) -> list[tuple[str, torch.dtype, int]]:
        """Lists (operation, dtype, count) for every tensor of another floating dtype."""
        found = [(op, dtype, n) for (op, dtype), n in self.counts.items() if dtype != allowed]
        return sorted(found, key=lambda item: (-item[2], item[0]))


def dtype_name(dtype: torch.dtype) -> str:
    """Spells a dtype without its `torch.` prefix."""
    return str(dtype).removeprefix("torch.")


def resolve_dtype(name: str) -> torch.dtype:
    """Finds the dtype of a name in `DTYPES`; raises ConfigError otherwise."""
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def apply_policy(dtype: str = "float32") -> PrecisionReport:
    """Switches every reduced-precision shortcut off and reports what torch then says.

    Calling it again changes nothing. Raises ConfigError for an unknown dtype.
    """
    resolve_dtype(dtype)
    # torch >= 2.9 has two interfaces to the same switches and refuses to read one that disagrees
    # with the other, so the old ones are set first and the new ones brought to the same state.
    torch.set_float32_matmul_precision("highest")
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    if _has(matmul, "allow_fp16_accumulation"):
        matmul.allow_fp16_accumulation = False
    torch.backends.cudnn.allow_tf32 = False
    # Its float32 kernels multiply on TF32 tensor cores (three times over) whatever allow_tf32 says.
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    for _, owner in _fp32_switches():
        owner.fp32_precision = "ieee"
    settings = read_settings()
    exact = all(value in ("False", "highest", "ieee") for value in settings.values())
    return PrecisionReport({"dtype": dtype, **settings}, exact)


def read_settings() -> dict[str, str]:
    """Reads every precision switch back from torch, by its name there."""
    matmul = torch.backends.cuda.matmul
    settings = {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda.matmul.allow_tf32": str(matmul.allow_tf32),
        "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "cuda.mem_efficient_sdp_enabled": str(
            torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        ),
    }
    for name in (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ):
        if _has(matmul, name):
            settings[f"cuda.matmul.{name}"] = str(getattr(matmul, name))
    settings |= {f"{name}.fp32_precision": owner.fp32_precision for name, owner in _fp32_switches()}
    return settings


def audit(fn: Callable[[], object]) -> AuditReport:
    """Runs `fn` and counts the floating-point tensors every torch operation produced in it."""
    mode = _Recorder()
    with mode:
        fn()
    return AuditReport(dict(mode.counts))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation below autograd, those inside attention functions included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.counts[str(func), leaf.dtype] += 1
        return result


def _fp32_switches() -> list[tuple[str, Any]]:
    """Lists the per-operation switches of the newer interface that this torch has."""
    backends: list[tuple[str, Any]] = [
        ("cuda", torch.backends.cuda),
        ("cudnn", torch.backends.cudnn),
        ("mkldnn", torch.backends.mkldnn),
    ]
    return [
        (f"{name}.{operation}", getattr(backend, operation))
        for name, backend in backends
        for operation in ("matmul", "conv", "rnn")
        if _has(getattr(backend, operation, None), "fp32_precision")
    ]


def _has(owner: object, name: str) -> bool:
    # cuBLASModule raises AttributeError on unknown names, or AssertionError without CUDA.
    try:
        getattr(owner, name)
    except (AttributeError, AssertionError):
        return False
    return True
