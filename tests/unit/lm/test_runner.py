"""The engine's promise: logits of any ragged step equal the stock model's own full forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import InternalError, ModelError, OverloadedError
from common.lm.attention import NAME
from common.lm.compatibility import stock_logits
from common.lm.execution import CompileMode
from common.lm.loading import twin
from common.lm.runner import LanguageModel, Segment
from tests.models import (
    ARCHITECTURES,
    VOCAB_SIZE,
    WINDOW,
    language_model,
    loaded,
    tiny,
    tiny_llama,
)

TOLERANCE = 1e-4


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn: list[int] = torch.randint(
        VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return drawn


def stock_rows(lm: LanguageModel, history: list[int], count: int) -> Tensor:
    """Logits of the last `count` tokens of a sequence."""
    return stock_logits(lm.loaded, history)[len(history) - count :]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_where_pages_lie_changes_no_bit(architecture: str) -> None:
    """Else a text would depend, in a near tie, on who else was there."""
    prompt, steps = tokens(200), ([7], [5, 6, 7, 8], tokens(30, 1))

    def logits(apart: bool) -> list[Tensor]:
        lm = language_model(architecture, compile_mode="auto")
        fillers = [lm.cache.allocate() for _ in range(6)]
        for filler in fillers[:: 2 if apart else 1]:
            lm.cache.free(filler)
        with lm.cache.session(300) as session:
            assert (lm.cache.places(session)[0] > 1) == apart
            found, position = [lm.forward([Segment(session, prompt, 0, 3)])], len(prompt)
            for step in steps:
                found.append(lm.forward([Segment(session, step, position, len(step))]))
                position += len(step)
        return found

    for together, apart in zip(logits(False), logits(True), strict=True):
        assert torch.equal(together, apart)


@pytest.fixture
def llama() -> Iterator[LanguageModel]:
    lm = language_model("llama", cache_tokens=256)
    yield lm
    lm.cache.check_integrity()


@pytest.mark.parametrize("compile_mode", ["off", "auto"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_step_equals_the_stock_model(
    architecture: str, compile_mode: CompileMode
) -> None:
    lm = language_model(architecture, compile_mode=compile_mode)
    assert lm.execution.path == ("eager" if compile_mode == "off" else "kernels")
    check_every_kind_of_step(lm)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_compiled_graphs_equal_their_stock_models(architecture: str) -> None:
    """Two of one architecture, as draft and target may be, do not take each other's graph."""
    models = [language_model(architecture, seed=seed, compile_mode="on") for seed in range(2)]
    for lm in models:
        lm.compile()
        assert (lm.execution.path, lm.execution.note) == ("compiled", "")
    for lm in models:
        check_every_kind_of_step(lm)


def check_every_kind_of_step(lm: LanguageModel) -> None:
    first, second = tokens(40, 1), tokens(33, 2)
    assert len(first) > 3 * WINDOW
    with lm.cache.session() as a, lm.cache.session() as b:
        steps = {
            "prefill": [Segment(a, first[:16], 0, 16)],
            "chunk without logits": [Segment(a, first[16:24], 16, 0)],
            "prefill beside decode": [
                Segment(b, second[:20], 0, 1),
                Segment(a, [first[24]], 24, 1),
            ],
            "wrong guesses": [Segment(a, tokens(4, 3), 25, 0)],
            "verify after rollback": [Segment(a, first[25:31], 25, 6)],
            "one token without logits": [Segment(b, [second[20]], 20, 0)],
            "mixed": [Segment(b, second[20:], 20, 5), Segment(a, first[31:36], 31, 2)],
            "deep rollback": [Segment(b, second[10:], 10, 23)],
            "long verify": [Segment(a, first[3:], 3, 37)],
            "decode": [Segment(b, second[-1:], 32, 1), Segment(a, first[-1:], 39, 1)],
        }
        stock = {a: stock_logits(lm.loaded, first), b: stock_logits(lm.loaded, second)}
        for name, step in steps.items():
            got = lm.forward(step)
            want = torch.cat([stock[s.session][s.end - s.num_logits : s.end] for s in step])
            assert got.shape == (sum(s.num_logits for s in step), VOCAB_SIZE), name
            if len(want):
                assert (got - want).abs().max().item() <= TOLERANCE, name
        lm.cache.check_integrity()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
@settings(max_examples=25)
@given(data=st.data())
def test_any_life_of_sessions_equals_the_stock_model(
    architecture: str, data: st.DataObject
) -> None:
    lm = language_model(architecture)
    history: dict[int, list[int]] = {lm.cache.allocate(): [] for _ in range(3)}
    for seed in range(data.draw(st.integers(1, 5), label="steps")):
        step, want = [], []
        for session in data.draw(st.permutations(sorted(history)), label="order"):
            held = history[session]
            count = data.draw(st.integers(0, 14), label="tokens")
            if count == 0:
                continue
            position = data.draw(st.integers(max(0, len(held) - 5), len(held)), label="position")
            new = tokens(count, 100 * seed + session)
            logits = data.draw(st.integers(0, count), label="logits")
            held[position:] = new
            step.append(Segment(session, new, position, logits))
            want.append(stock_rows(lm, held, logits))
        if step:
            got = lm.forward(step)
            assert torch.allclose(got, torch.cat(want), rtol=0, atol=TOLERANCE)
    lm.cache.check_integrity()


def test_logits_are_cut_to_the_effective_vocabulary() -> None:
    lm = LanguageModel(loaded(tiny_llama(vocab_size=VOCAB_SIZE + 64)), 128)
    with lm.cache.session() as session:
        assert lm.forward([Segment(session, [1, 2], 0, 2)]).shape == (2, VOCAB_SIZE)


def test_a_tokenizer_wider_than_the_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="320 tokens but the model only 300 logits"):
        loaded(tiny_llama(vocab_size=300))


def test_no_room_changes_nothing(llama: LanguageModel) -> None:
    with llama.cache.session() as a, llama.cache.session() as b:
        llama.forward([Segment(a, tokens(30), 0, 0), Segment(b, tokens(30), 0, 0)])
        before = llama.cache.used_tokens
        with pytest.raises(OverloadedError):
            llama.forward([Segment(a, tokens(100), 20, 0), Segment(b, tokens(200), 20, 0)])
        assert llama.cache.used_tokens == before
        assert [llama.cache.length(a), llama.cache.length(b)] == [30, 30]


def test_a_failing_model_leaves_the_positions(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = tokens(20)
    with llama.cache.session() as a, llama.cache.session() as b:
        llama.forward([Segment(a, sequence[:10], 0, 0), Segment(b, sequence[:10], 0, 0)])

        def fail(*args: object) -> Tensor:
            raise RuntimeError("planted")

        module: Any = llama._module
        with monkeypatch.context() as patch:
            patch.setattr(module.model.layers[1].mlp, "forward", fail)
            with pytest.raises(RuntimeError, match="planted"):
                llama.forward([Segment(a, tokens(5, 9), 10, 1), Segment(b, tokens(5, 9), 7, 1)])
        assert [llama.cache.length(a), llama.cache.length(b)] == [10, 7]
        llama.cache.check_integrity()
        got = llama.forward([Segment(b, sequence[7:], 7, 1), Segment(a, sequence[10:], 10, 1)])
        want = stock_rows(llama, sequence, 1)
        assert (got - want).abs().max().item() <= TOLERANCE


def test_an_architecture_that_ignores_logits_to_keep_is_sliced_here(
    llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = llama._module.forward
    monkeypatch.setattr(
        llama._module,
        "forward",
        lambda logits_to_keep, **kwargs: forward(**kwargs),
    )
    sequence = tokens(9)
    with llama.cache.session() as session:
        got = llama.forward([Segment(session, sequence, 0, 2)])
    assert (got - stock_rows(llama, sequence, 2)).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "without segments"),
        ([Segment(0, [1], 0, 1), Segment(0, [1], 0, 1)], "twice"),
        ([Segment(0, [1], 1, 1)], "holds 0 tokens: cannot continue from 1"),
        ([Segment(0, [], 0, 0)], "0 logits of 0 tokens"),
        ([Segment(0, [1], 0, 2)], "2 logits of 1 tokens"),
        ([Segment(0, [VOCAB_SIZE], 0, 1)], "outside the vocabulary"),
        ([Segment(0, [1] * 257, 0, 1)], "context ends at 256"),
        ([Segment(9, [1], 0, 1)], "no session 9"),
    ],
)
def test_a_broken_step_is_our_own_fault(segments: list[Segment], message: str) -> None:
    lm = language_model("llama", cache_tokens=512)
    assert lm.cache.allocate() == 0
    with pytest.raises(InternalError, match=message):
        lm.forward(segments)
    assert lm.cache.length(0) == 0


def test_both_modules_read_the_same_storage() -> None:
    for architecture in ("llama", "gpt2", "gemma2"):  # gpt2 ties its embeddings
        model = tiny(architecture)
        second: Any = twin(model, NAME)
        pairs = zip(
            [*model.named_parameters(), *model.named_buffers()],
            [*second.named_parameters(), *second.named_buffers()],
            strict=True,
        )
        for (name, ours), (_, theirs) in pairs:
            assert ours.data_ptr() == theirs.data_ptr(), name
        assert second.config._attn_implementation == NAME
        assert model.config._attn_implementation in ("sdpa", "eager")
        assert second.config is not model.config


def test_serving_leaves_the_stock_module_as_it_was(llama: LanguageModel) -> None:
    stock: Any = llama.stock
    prompt = torch.tensor([tokens(6)])
    before = stock.generate(prompt, max_new_tokens=8, do_sample=False)
    with llama.cache.session() as session:
        llama.forward([Segment(session, tokens(12, 4), 0, 1)])
    assert torch.equal(before, stock.generate(prompt, max_new_tokens=8, do_sample=False))


def test_other_precisions_run_in_themselves() -> None:
    model = tiny_llama().to(torch.bfloat16)  # type: ignore[arg-type]
    lm = LanguageModel(loaded(model), 128)
    with lm.cache.session() as session:
        logits = lm.forward([Segment(session, tokens(5), 0, 5)])
    assert logits.dtype == lm.dtype == lm.cache.dtype == torch.bfloat16
