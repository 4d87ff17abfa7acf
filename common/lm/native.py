"""The engine's own kernels: those of kernels/, compiled for this machine once and kept.

They are torch operators, `torch.ops.outrider.*`, so a compiled graph calls them as any other.
Without a C++ compiler there are none, and torch's own are used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("kernels")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno")
PATIENCE_S = 300


class NoKernels(Exception):
    """Says why there are no kernels, in words for a person."""


@cache
def load_kernels() -> str:
    """Makes the operators known to torch; returns "" or why that is not possible."""
    try:
        library = _built()
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:  # damaged since: made anew
            library.unlink()
            torch.ops.load_library(str(_built()))  # type: ignore[no-untyped-call]
    except NoKernels as missing:
        return str(missing)
    except OSError as error:
        return f"the kernels cannot be loaded: {error}"
    _describe()
    return ""


class KernelLinear(nn.Linear):
    """Is `nn.Linear` by our kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[..., inner]` to `[..., outer]`."""
        output: Tensor = torch.ops.outrider.linear(input, self.weight, self.bias)
        return output


def use_kernels(module: nn.Module) -> None:
    """Lets the linear layers of a module run by the kernels, over the weights they have."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = KernelLinear


def _built() -> Path:
    """Returns the library, compiled if this machine has not done so before."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "outrider"
    library = folder / f"kernels-{_identity(compiler)}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / library.name
            _compile(compiler, made)
            made.replace(library)
    except OSError:  # nowhere to keep it: once more at every start
        made = Path(_until_exit().name) / library.name
        _compile(compiler, made)
        return made
    return library


@cache
def _until_exit() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="outrider-")


def _compile(compiler: Sequence[str], target: Path) -> None:
    logger.info("compiling the kernels, once for this machine")
    places = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [
        *compiler,
        *FLAGS,
        abi,
        *places,
        str(SOURCES / "operators.cpp"),
        "-o",
        str(target),
        *libraries,
    ]
    try:
        subprocess.run(
            [*command, "-lc10", "-ltorch_cpu"],
            check=True, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    except OSError:
        raise NoKernels(f"there is no C++ compiler {shlex.join(compiler)}") from None
    except subprocess.CalledProcessError as failed:
        lines = failed.stderr.splitlines() or [f"it ended with {failed.returncode}"]
        said = next((line for line in lines if "error" in line), lines[-1])
        raise NoKernels(f"{shlex.join(compiler)} cannot compile the kernels: {said}") from failed
    except subprocess.TimeoutExpired:
        raise NoKernels(f"{shlex.join(compiler)} took longer than {PATIENCE_S} s") from None
    with target.open("rb") as made:
        os.fsync(made.fileno())


def _identity(compiler: Sequence[str]) -> str:
    """Returns what the library depends on, digested: its source, torch, and the processor."""
    try:
        processor = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "flags" in line.lower()
        )
    except (OSError, StopIteration):
        processor = platform.processor()
    parts = (
        *(source.read_text() for source in sorted(SOURCES.iterdir())),
        torch.__version__,
        *compiler,
        *FLAGS,
        platform.machine(),
        processor,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _describe() -> None:
    """Tells the compiler what shapes the operators return."""

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return input.new_empty((*input.shape[:-1], weight.shape[0]))

    def attend(query: Tensor, key: Tensor, value: Tensor, *call: float) -> Tensor:
        return query.new_empty((query.shape[1], query.shape[0], value.shape[2]))

    for name, fake in (("linear", linear), ("attend", attend)):
        torch.library.register_fake(f"outrider::{name}", fake)
