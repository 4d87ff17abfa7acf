"""llama.cpp's step over the same weights, for benchmarks/engine.py.

It runs in a process of its own: the threads of one side, which go on turning for a while after a
step, would keep the processor from the other's. Blocks of steps are taken in turns, each after the
other side has fallen asleep.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

ASLEEP_S = 0.1
"""After so long without work, no thread of OpenMP turns any more."""
CLOSE = 1e-4
"""Of the largest logit: two ways to add up the same numbers are within; half precision is not."""

Logits = NDArray[np.float32]


def is_installed() -> bool:
    """Whether the extra `bench` is there."""
    return all(find_spec(name) is not None for name in ("llama_cpp", "gguf"))


class LlamaCpp:
    """Is a model of llama.cpp with a context in its cache; a call is a step, rolled back.

    The step runs the context's first token after its last.
    """

    def __init__(self, file: Path, context: Sequence[int], threads: int) -> None:
        """Reads the file and the context; all is as by default but what is not float32.

        Keys and values would be stored in half precision, and turned into it by flash attention.
        """
        import llama_cpp

        self._library: Any = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = 256
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot read {file}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._held, self._token = len(context), (ctypes.c_int32 * 1)(context[0])
        self._decode((ctypes.c_int32 * len(context))(*context))

    def __call__(self) -> Any:
        """Runs the step; returns where its logits are."""
        self._decode(self._token)
        logits = self._library.llama_get_logits_ith(self._context, -1)
        self._library.llama_memory_seq_rm(self._memory, 0, self._held, -1)
        return logits

    def logits(self) -> Logits:
        """Returns the step's logits, `[vocab_size]`."""
        return np.ctypeslib.as_array(self(), (self._vocab_size,)).copy()

    def _decode(self, tokens: Any) -> None:
        batch = self._library.llama_batch_get_one(tokens, len(tokens))
        if status := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp cannot decode {len(tokens)} tokens: {status}")


def block(call: Callable[[], object], count: int) -> list[float]:
    """Returns the milliseconds of so many calls, after sleep and a few calls more to warm up."""
    time.sleep(ASLEEP_S)
    times = []
    for turn in range(-(count // 4) - 1, count):
        started = time.perf_counter()
        call()
        if turn >= 0:
            times.append(1e3 * (time.perf_counter() - started))
    return times


def compare(
    ours: Callable[[], Tensor], file: Path, context: Sequence[int], threads: int, steps: int
) -> dict[str, float]:
    """Returns the median milliseconds of our step and of llama.cpp's, in eight blocks each.

    `ours` runs the same step and returns its logits, `[1, vocab_size]`. Raises ValueError when
    llama.cpp's are others.
    """
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    with _apart(file, context, threads) as (logits, theirs):
        check(ours()[0].numpy(), logits)
        for _ in range(8):
            times["ours"] += block(ours, steps)
            times["theirs"] += theirs(steps)
    return {name: statistics.median(taken) for name, taken in times.items()}


def check(ours: Logits, theirs: Logits) -> None:
    """Raises ValueError unless two sides' logits are the same but for rounding.

    Theirs may be more: ours end with the tokenizer's vocabulary, which may be shorter.
    """
    largest = float(np.abs(ours).max())
    off = float(np.abs(ours - theirs[: len(ours)]).max())
    if not off <= CLOSE * largest:
        raise ValueError(f"llama.cpp's logits are {off:.2g} off, of {largest:.2g} at most")


@contextmanager
def _apart(
    file: Path, context: Sequence[int], threads: int
) -> Iterator[tuple[Logits, Callable[[int], list[float]]]]:
    """Runs llama.cpp in a process of its own: its logits, and what times so many of its steps."""
    fresh = multiprocessing.get_context("spawn")
    here, there = fresh.Pipe()
    process = fresh.Process(target=_serve, args=(there, file, context, threads))
    process.start()
    there.close()  # or its end would not be seen

    def theirs(count: int) -> list[float]:
        here.send(count)
        times: list[float] = here.recv()
        return times

    try:
        yield here.recv(), theirs
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, file: Path, context: Sequence[int], threads: int) -> None:
    model = LlamaCpp(file, context, threads)
    connection.send(model.logits())
    while True:
        try:
            count = connection.recv()
        except EOFError:
            return
        connection.send(block(model, count))
