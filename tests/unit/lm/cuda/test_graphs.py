"""Whole models by graphs come out as the stock module, whatever size a step is padded to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cloud_server.acceptance import Check, coupled_there
from common.errors import ConfigError
from common.lm import compatibility, cuda, execution, runner
from common.lm.attention import LayerCall, current_step
from common.lm.compatibility import stock_logits
from common.lm.cuda.capture import capture_on
from common.lm.execution import CompileMode
from common.lm.runner import LanguageModel, Segment
from common.types import SamplingParams
from tests.models import language_model, loaded, tiny_llama
from tests.scattered import ScatteredCache
from tests.unit.lm.test_runner import TOLERANCE, check_every_kind_of_step, tokens
from tests.waiting import waits

pytest.importorskip("triton", reason="the kernels are in Triton, which is not installed")

from common.lm.cuda import attention, graphs  # imports Triton

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Rerun:
    """Stands in for a capture: has a function run again over the tensors it reads."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # tokens of the steps replayed

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = run()

        def replay() -> Tensor:
            self.sizes.append(len(output))
            return output.copy_(run())

        return replay


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> Rerun:
    """Lets a model on the CPU be one on a GPU, whose graphs are rerun."""
    made = Rerun()
    monkeypatch.setattr(execution, "capture_on", lambda device: made)
    for module in (runner, compatibility):
        monkeypatch.setattr(module, "KVCache", ScatteredCache)
    # The interpreter takes a millisecond for each program.
    monkeypatch.setattr(graphs, "MOST_TOKENS", 8)
    monkeypatch.setattr(attention, "_SPLITS", 1)
    return made


def check_life(lm: LanguageModel) -> None:
    """Compares a short life of two sessions with the stock module; longer than a window."""
    first, second = tokens(14, 1), tokens(9, 2)
    with lm.cache.session(14) as a, lm.cache.session(9) as b:
        stock = {a: stock_logits(lm.loaded, first), b: stock_logits(lm.loaded, second)}
        for step in (
            [Segment(a, first[:9], 0, 2)],
            [Segment(b, second[:3], 0, 1), Segment(a, tokens(2, 3), 9, 0)],
            [Segment(a, first[9:13], 9, 4), Segment(b, second[3:4], 3, 1)],
            [Segment(a, first[13:], 13, 1)],
            [Segment(b, second[2:], 2, 7)],
        ):
            got = lm.forward(step)
            want = torch.cat([stock[s.session][s.end - s.num_logits : s.end] for s in step])
            assert (got - want).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2"])
def test_every_kind_of_step_equals_the_stock_model(architecture: str, rerun: Rerun) -> None:
    lm = language_model(architecture, compile_mode="on")
    assert (lm.execution.path, lm.execution.note) == ("graphs", "")
    assert lm.execution.description == "graphs"
    check_life(lm)


def test_a_step_is_padded_to_the_next_size_and_beyond_the_last_to_none(rerun: Rerun) -> None:
    lm = language_model(compile_mode="on")
    with lm.cache.session(30) as session:
        for tokens, wanted, size in ((1, 1, 1), (3, 1, 4), (4, 4, 4), (5, 2, 8), (8, 0, 8)):
            rerun.sizes.clear()
            logits = lm.forward([Segment(session, [7] * tokens, 0, wanted)])
            assert len(logits) == wanted
            assert rerun.sizes == [size]
        rerun.sizes.clear()
        lm.forward([Segment(session, [7] * 9, 0, 1)])
        assert rerun.sizes == []


def test_logits_outlive_the_next_step(rerun: Rerun) -> None:
    lm = language_model(compile_mode="on")
    with lm.cache.session() as session:
        first = lm.forward([Segment(session, [5], 0, 1)])
        kept = first.clone()
        lm.forward([Segment(session, [9], 1, 1)])
    assert torch.equal(first, kept)


def test_weights_are_in_memory_once(rerun: Rerun) -> None:
    lm = language_model(compile_mode="on")
    stock = {p.data_ptr() for p in lm.stock.parameters()}
    assert {p.data_ptr() for p in lm._module.parameters()} == stock


def test_a_step_of_the_engine_waits_once(rerun: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the tokens of a step to the tokens that follow it; what a graph does is its own."""
    lm = language_model(compile_mode="on")
    replay = lm.execution._replay
    with lm.cache.session() as session:
        segment = Segment(session, [5, 6, 7], 0, 3)
        rows = lm.forward([segment])
        for size in replay._graphs:
            replay._graphs[size] = lambda: torch.cat([rows, rows[:1]])
        check = Check((5,), (6, 7), 0, 1, SamplingParams(0.9, seed=4))

        def step() -> None:
            coupled_there(lm.forward([segment]), [check])

        assert waits(step) == {"tolist": 1}


class Echo:
    """Stands in for attention."""

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value.repeat(len(query) // len(value), 1, 1).transpose(0, 1)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2", "gpt2"])
def test_what_a_graph_holds_waits_for_nothing(architecture: str) -> None:
    """Were a module to wait, no graph of it could be captured."""
    module = language_model(architecture)._module
    ids, rows = torch.ones(1, 4, dtype=torch.long), torch.arange(4)
    with current_step(Echo()), torch.inference_mode():
        assert not waits(lambda: execution._logits(module, ids, rows[None], rows))


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("proof", "graphs", "attention", "kernels"):
        monkeypatch.delitem(sys.modules, f"common.lm.cuda.{name}", raising=False)
        monkeypatch.delattr(cuda, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.usefixtures("without_triton")
def test_without_triton_the_module_runs_as_it_is_and_says_why(
    mode: CompileMode, rerun: Rerun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    if mode == "on":
        with pytest.raises(ConfigError, match=r"need Triton.*set it to auto"):
            language_model(compile_mode=mode)
        return
    lm = language_model(compile_mode=mode)
    assert lm.execution.path == "eager"
    (said,) = [message for message in caplog.messages if "runs as" in message]
    assert "runs as eager: graphs on a GPU need Triton" in said
    assert "\n" not in said


def test_a_capture_that_fails_is_done_without(
    rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(execution, "capture_on", lambda device: refuse)
    lm = language_model(compile_mode="auto")
    assert lm.execution.path == "eager"
    assert lm.execution.note == (
        "steps cannot be captured as graphs: RuntimeError: operation not permitted when stream is "
        "capturing"
    )
    lm.forward([Segment(lm.cache.allocate(), [5, 6], 0, 1)])


def test_graphs_that_are_wrong_are_not_taken_into_use(
    rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slightly_off(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: run() + 0.1

    monkeypatch.setattr(execution, "capture_on", lambda device: slightly_off)
    lm = language_model(compile_mode="auto")
    assert lm.execution.path == "eager"
    assert "0.1 off" in lm.execution.note


def test_graphs_are_for_float32(rerun: Rerun) -> None:
    half = loaded(tiny_llama().to(torch.bfloat16))  # type: ignore[arg-type]
    lm = LanguageModel(half, 128, "auto")
    assert (lm.execution.path, lm.execution.note) == ("eager", "graphs on a GPU are for float32")


def test_off_leaves_the_module_alone(rerun: Rerun) -> None:
    lm = language_model(compile_mode="off")
    assert (lm.execution.path, lm.execution.note, rerun.sizes) == ("eager", "", [])


def test_nothing_is_captured_on_a_cpu() -> None:
    assert capture_on(torch.device("cpu")) is None


@GPU
def test_a_captured_graph_reads_what_its_tensors_hold_now() -> None:
    device = torch.device("cuda", 0)
    given = torch.ones(4, device=device)
    capture = capture_on(device)
    assert capture is not None
    replay = capture(lambda: given * 2)
    given.fill_(3)
    assert replay().tolist() == [6.0] * 4


@GPU
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2"])
def test_on_a_gpu_every_kind_of_step_equals_the_stock_model(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runner, compatibility):
        monkeypatch.setattr(module, "KVCache", ScatteredCache)
    model = language_model(architecture).stock
    lm = LanguageModel(loaded(model.to("cuda")), 1024, "on")  # type: ignore[arg-type]
    assert (lm.execution.path, lm.execution.note) == ("graphs", "")
    check_every_kind_of_step(lm)
