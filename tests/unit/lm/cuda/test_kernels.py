"""The kernels against attention by torch: interpreted where there is no GPU, else on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import torch

from common.lm.attention import LayerCall, RaggedStep, Span
from common.lm.cuda.tables import Size, Tables, describe
from common.lm.kv_cache import KVCache
from common.lm.pages import LayerShape
from common.lm.staging import staged
from tests.scattered import ScatteredCache

pytest.importorskip("triton", reason="the kernels are in Triton, which is not installed")

from common.lm.cuda.attention import PagedStep  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Heads(NamedTuple):
    heads: int
    kv_heads: int
    size: int
    value_size: int
    tile_rows: int


PLAIN = Heads(4, 2, 8, 8, 8)

LIFE = [  # steps of (session, position, tokens)
    [(0, 0, 66), (1, 0, 1)],  # prompts, one over the end of a page
    [(1, 1, 1)],  # decode
    [(0, 66, 1), (2, 0, 9), (1, 2, 5)],  # everything at once
    [(0, 62, 6), (1, 3, 4)],  # verified after a rollback
    [(0, 68, 20)],  # a prompt goes on
]


@pytest.mark.parametrize(
    ("layer", "window", "softcap"),
    [
        (PLAIN, None, None),
        (PLAIN, 5, None),
        (PLAIN, None, 1.5),
        (Heads(3, 3, 20, 12, 16), 40, 30.0),
        (Heads(7, 1, 16, 33, 2), 1, None),
        (Heads(20, 1, 4, 4, 1), 40, 0.5),
    ],
)
def test_each_row_attends_to_its_own_session(
    layer: Heads, window: int | None, softcap: float | None
) -> None:
    made = torch.Generator().manual_seed(0)
    shapes = [LayerShape(1, 1, 1), LayerShape(layer.kv_heads, layer.size, layer.value_size)]
    call = LayerCall(1, 0.6, window, softcap)
    ours, theirs = (ScatteredCache(shapes, 384, device=DEVICE) for _ in range(2))
    for _ in range(3):
        ours.allocate(), theirs.allocate()
    for step in LIFE:
        spans: list[Span] = []
        for session, position, count in step:
            start = spans[-1].stop if spans else 0
            spans.append(Span(start, start + count, session, position))
            for pool in (ours, theirs):
                pool.truncate(session, position)
                pool.extend(session, count)
        count = spans[-1].stop
        size = Size(count + 3, 0)
        query, key, value = (
            torch.randn(size.tokens, heads, width, generator=made).to(DEVICE).transpose(0, 1)
            for heads, width in (
                (layer.heads, layer.size),
                (layer.kv_heads, layer.size),
                (layer.kv_heads, layer.value_size),
            )
        )
        by_torch = RaggedStep(cast(KVCache, theirs), spans)
        want = by_torch.attend(call, query[:, :count], key[:, :count], value[:, :count])
        numbers = describe(ours, spans, [0] * count, [], size, layer.tile_rows)
        by_kernels = PagedStep(ours, Tables.of(staged(numbers, DEVICE), size), layer.tile_rows)
        got = by_kernels.attend(call, query, key, value)
        assert got.shape == (size.tokens, layer.heads, layer.value_size)
        assert (got[:count] - want).abs().max().item() < 1e-5
        assert not got[count:].any()  # padding attends to nothing
    for index in range(2):  # and is written nowhere
        for written, expected in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            torch.testing.assert_close(
                written[index], expected[index], rtol=0, atol=0, equal_nan=True
            )


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from common.lm.cuda import kernels

COMMON = {name: "*fp32" for name in ("key", "value", "query", "keys", "values", "output", "weight")}
COMMON |= {name: "*i64" for name in ("positions", "tiles", "pages", "slots")}
COMMON |= {"scaling": "fp32", "softcap": "fp32"}
GIVEN = dict(WINDOW=64, CAPPED=True, GROUPS=4, SIZE=80, VALUE_SIZE=80, VALUE_COLUMNS=128,
             COLUMNS=128, QUERIES=16, KEYS=32, PAGE=64, ROWS=16)
for kernel in (kernels.write, kernels.attend):
    fixed = {name: GIVEN[name] for name in kernel.arg_names if name in GIVEN}
    types = {name: "constexpr" if name in fixed else COMMON.get(name, "i32")
             for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=fixed)
    built = triton.compile(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True})
    assert built.asm["cubin"]
    text = built.asm["ptx"]
    print(kernel.fn.__name__, "tf32" in text, "mma" in text, "fma.rn.f32" in text)
"""


def test_they_compile_for_a_gpu_to_float32_multiply_adds(tmp_path: Path) -> None:
    """Triton needs no GPU to make the machine code of one."""
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n") == ["write False False False", "attend False False True", ""]
