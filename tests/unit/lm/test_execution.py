"""How forwards are executed is chosen, and said; what cannot be had is done without or refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from common.errors import ConfigError
from common.lm import execution, native
from common.lm.attention import KernelStep, LayerCall, Span, kernel_step
from common.lm.execution import CompileMode
from common.lm.kv_cache import KVCache
from common.lm.pages import LayerShape
from common.lm.runner import LanguageModel, Segment, compile_meanwhile
from tests.models import language_model, loaded, tiny_llama


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load_kernels.cache_clear()
    yield
    native.load_kernels.cache_clear()


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_the_module_runs_as_it_is_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    lm = language_model(compile_mode="auto")
    lm.compile()
    (said,) = [message for message in caplog.messages if "runs as" in message]
    assert said.endswith("runs as eager: there is no C++ compiler no-such-compiler")
    assert (lm.execution.path, lm.execution.description) == ("eager", "eager")
    assert lm.execution.note == "there is no C++ compiler no-such-compiler"


@pytest.mark.usefixtures("without_compiler")
def test_what_must_be_compiled_and_cannot_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="no-such-compiler; set it to auto"):
        language_model(compile_mode="on")


def test_a_compiler_that_fails_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: no such header' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.load_kernels.cache_clear()
    try:
        assert "error: no such header" in native.load_kernels()
        assert list((tmp_path / "outrider").iterdir()) == []
    finally:
        native.load_kernels.cache_clear()


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_kernels_are_for_float32(mode: CompileMode) -> None:
    half = loaded(tiny_llama().to(torch.bfloat16))  # type: ignore[arg-type]
    if mode == "on":
        with pytest.raises(ConfigError, match="float32 on the CPU"):
            LanguageModel(half, 128, mode)
        return
    lm = LanguageModel(half, 128, mode)
    assert (lm.execution.path, lm.execution.note) == (
        "eager",
        "the kernels are for float32 on the CPU",
    )


def test_a_graph_that_is_wrong_is_not_taken_into_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_off(run: object, **_: object) -> object:
        assert callable(run)
        return lambda *tensors: run(*tensors) + 0.1

    monkeypatch.setattr(torch, "compile", slightly_off)
    lm = language_model(compile_mode="auto")
    lm.compile()
    assert lm.execution.description == "kernels"
    assert "0.1 off" in lm.execution.note
    monkeypatch.setattr(execution, "TOLERANCE", 1.0)
    lm.compile()
    assert lm.execution.description == "compiled"


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_what_is_compiled_meanwhile_comes_to_an_end(mode: CompileMode) -> None:
    models = [language_model(compile_mode=mode) for _ in range(2)]
    compile_meanwhile(*models)
    assert all(lm.execution.is_compiling is (mode == "auto") for lm in models)
    for thread in threading.enumerate():
        if thread.name == "compiling":
            thread.join()
    for lm in models:
        assert lm.execution.description == ("eager" if mode == "off" else "compiled")


def test_weights_are_in_memory_once() -> None:
    lm = language_model(compile_mode="on")
    stock = {p.data_ptr() for p in lm.stock.parameters()}
    lm.compile()
    assert {p.data_ptr() for p in lm._module.parameters()} == stock


def test_a_session_is_not_disturbed_by_a_graph_compiled_beside_it() -> None:
    lm = language_model(compile_mode="auto")
    with lm.cache.session() as session:
        before = lm.forward([Segment(session, [5, 6, 7], 0, 1)])
        lm.compile()
        assert lm.execution.path == "compiled"
        after = lm.forward([Segment(session, [7], 2, 1)])
    assert (after - before).abs().max().item() <= 1e-4


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("window", [None, 100, 200])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_long_attention_is_what_its_formula_says(
    count: int, window: int | None, softcap: float | None
) -> None:
    """Over several blocks of keys, of heads whose size is no vector's."""
    assert native.load_kernels() == ""
    heads, kv_heads, size, before = 4, 2, 20, 333
    made = torch.Generator().manual_seed(count)
    cache = KVCache([LayerShape(kv_heads, size, size)], 512)
    query = 3 * torch.randn(heads, count, size, generator=made)
    keys, values = (torch.randn(kv_heads, before + count, size, generator=made) for _ in range(2))
    with cache.session(before + count) as session:
        cache.extend(session, before + count)
        cache.write(session, 0, 0, keys[:, :before], values[:, :before])
        call = LayerCall(0, 0.5, window, softcap)
        with kernel_step(cache, [Span(0, count, session, before)]):
            got = KernelStep().attend(call, query, keys[:, before:], values[:, before:])
    keys, values = (held.double().repeat_interleave(2, 0) for held in (keys, values))
    scores = query.double() @ keys.transpose(1, 2) * 0.5
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    distance = (before + torch.arange(count))[:, None] - torch.arange(before + count)
    scores[:, (distance < 0) | (distance >= (window or 10**6))] = -torch.inf
    want = (scores.softmax(-1) @ values).transpose(0, 1)
    assert (got - want).abs().max().item() <= 1e-5


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 7, 16, 17, 40, 96, 97])
@pytest.mark.parametrize(("outer", "inner"), [(8, 16), (37, 19), (512, 300), (11, 9001)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_torchs_own(tokens: int, outer: int, inner: int, has_bias: bool) -> None:
    assert native.load_kernels() == ""
    made = torch.Generator().manual_seed(outer + tokens)
    given = torch.randn(2, tokens, inner, generator=made).transpose(0, 1)[:, 0]  # not contiguous
    weight = torch.randn(outer, inner, generator=made)
    bias = torch.randn(outer, generator=made) if has_bias else None
    got = torch.ops.outrider.linear(given, weight, bias)
    want = torch.nn.functional.linear(
        given.double(), weight.double(), None if bias is None else bias.double()
    )
    assert got.shape == (tokens, outer)
    assert (got - want).abs().max().item() <= 2e-6 * inner


@pytest.mark.parametrize("inner", [300, 9001])
@pytest.mark.parametrize("tokens", [13, 40])
def test_a_tokens_product_does_not_depend_on_its_company(tokens: int, inner: int) -> None:
    assert native.load_kernels() == ""
    tokens = min(tokens, torch.ops.outrider.most_tokens())
    many = torch.randn(tokens, inner, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(101, inner, generator=torch.Generator().manual_seed(2))
    together = torch.ops.outrider.linear(many, weight, None)
    for row in range(tokens):
        alone = torch.ops.outrider.linear(many[row : row + 1], weight, None)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    ("given", "weight", "bias"),
    [((3, 16), (4, 8), None), ((), (4, 1), None), ((2, 8), (4, 8), (1,)), ((2, 8), (4, 8), (3,))],
)
def test_what_does_not_fit_is_torchs_own_answer_or_error(
    given: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    assert native.load_kernels() == ""
    tensors = [torch.ones(given), torch.ones(weight), None if bias is None else torch.ones(bias)]
    try:
        want = torch.nn.functional.linear(*tensors)  # type: ignore[arg-type]
    except RuntimeError:
        with pytest.raises(RuntimeError):
            torch.ops.outrider.linear(*tensors)
    else:
        assert torch.equal(torch.ops.outrider.linear(*tensors), want)


def test_nothing_is_compiled_again_once_it_serves() -> None:
    lm = language_model(compile_mode="on")
    lm.compile()
    graphs = counters["stats"]["unique_graphs"]
    with lm.cache.session(240) as session:
        position = 0
        for count, wanted in ((1, 0), (1, 1), (2, 0), (2, 1), (17, 17), (200, 1)):
            lm.forward([Segment(session, [5] * count, position, wanted)])
            position += count
    assert counters["stats"]["unique_graphs"] == graphs


def test_where_nothing_can_be_kept_it_is_made_for_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(native, "_compile", lambda _, target: target.touch())
    made = native._built()
    assert made.exists()
    assert not made.is_relative_to(tmp_path)
    native._until_exit().cleanup()
    native._until_exit.cache_clear()
    assert not made.exists()


def test_a_damaged_library_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "outrider").mkdir()
    name = f"kernels-{native._identity(['c++'])}.so"
    (tmp_path / "outrider" / name).touch()
    compiled: list[Path] = []

    def compile_again(_: object, target: Path) -> None:
        compiled.append(target)
        raise native.NoKernels("it was asked for")

    monkeypatch.setattr(native, "_compile", compile_again)
    monkeypatch.delenv("CXX", raising=False)
    native.load_kernels.cache_clear()
    try:
        assert native.load_kernels() == "it was asked for"
        assert len(compiled) == 1
    finally:
        native.load_kernels.cache_clear()
