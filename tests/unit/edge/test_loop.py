"""The speculative loop against the server's own rules: the text is the target's, always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InternalError, OverloadedError
from common.stopping import Stopper
from common.types import Draft, FinishReason, OpenSession, StopParams
from edge_client.draft_length import FixedPace
from edge_client.link import Opened
from edge_client.loop import speculate
from edge_client.policy import PLAIN, Drafted
from edge_client.session import ClientSession
from edge_client.steps import Step
from tests.unit.edge.pair import (
    CONTEXT,
    EOS,
    GREEDY,
    PEER,
    Clock,
    PairedStream,
    ScriptedDrafter,
    undisturbed,
)

PROMPT = (300, 301, 302)


class CountingDrafter(ScriptedDrafter):
    """Counts what it was asked and what it made; `ends` are what it takes for the end."""

    def __init__(self, wrong: int | None, ends: tuple[int, ...] | None = None) -> None:
        super().__init__(wrong)
        self.ends = ends
        self.calls = self.made = 0

    def draft(self, *arguments: Any, **named: Any) -> Drafted:
        if self.ends is not None:
            named["ends"] = self.ends
        drafted = super().draft(*arguments, **named)
        self.calls += 1
        self.made += len(drafted.token_ids)
        return drafted


def run(
    stream: PairedStream,
    *,
    length: int = 4,
    wrong: int | None = None,
    ahead: int = 0,
    drafter: ScriptedDrafter | None = None,
) -> Iterator[Step]:
    prompt = stream.opening.prompt_token_ids
    return speculate(
        ClientSession(prompt),
        drafter or ScriptedDrafter(wrong),
        stream,
        Stopper(stream.opening.stop, model_eos=(EOS,), room=CONTEXT - len(prompt)),
        FixedPace(length, max_draft_tokens=8, ahead=ahead),
        PLAIN,
        GREEDY,
        Clock(),
    )


def opened(stop: StopParams, prompt: tuple[int, ...] = PROMPT) -> PairedStream:
    return PairedStream(OpenSession(PEER, prompt, GREEDY, stop))


def tokens(steps: list[Step]) -> tuple[int, ...]:
    return tuple(token_id for step in steps for token_id in step.token_ids)


@given(
    max_new_tokens=st.integers(1, 80),
    length=st.integers(0, 10),
    wrong=st.none() | st.integers(1, 6),
    prompt_length=st.integers(1, CONTEXT - 1),
    ignore_eos=st.booleans(),
    ahead=st.integers(0, 5),
    is_here=st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
)
def test_the_text_is_what_the_target_alone_writes(
    max_new_tokens: int,
    length: int,
    wrong: int | None,
    prompt_length: int,
    ignore_eos: bool,
    ahead: int,
    is_here: list[bool],
) -> None:
    """Whenever verdicts arrive: `is_here` answers, in turn, whether one has by now."""
    stop = StopParams(max_new_tokens, () if ignore_eos else None)
    prompt = tuple(range(200, 200 + prompt_length))
    stream = opened(stop, prompt)
    stream.is_here = partial(next, cycle(is_here))
    steps = list(run(stream, length=length, wrong=wrong, ahead=ahead))
    assert tokens(steps) == undisturbed(prompt, stop)
    assert [step.finish_reason is None for step in steps[:-1]] == [True] * (len(steps) - 1)
    assert steps[-1].finish_reason is not None
    assert stream.forwards == sum(not step.overtaken for step in steps)  # nothing else was run


def test_a_round_that_is_accepted_whole_brings_one_token_more_than_was_drafted() -> None:
    steps = list(run(opened(StopParams(10))))
    assert [(s.num_draft_tokens, s.num_accepted_tokens, len(s.token_ids)) for s in steps] == [
        (4, 4, 5),
        (4, 4, 5),
    ]
    assert steps[-1].finish_reason is FinishReason.MAX_NEW_TOKENS


def test_the_last_token_is_never_drafted() -> None:
    stream = opened(StopParams(7))
    list(run(stream))
    assert [len(draft.token_ids) for draft in stream.sent] == [4, 1]


def test_a_step_holds_what_was_measured() -> None:
    step = next(run(opened(StopParams(10))))
    assert (step.elapsed_ns, step.draft_ns, step.bytes_up, step.bytes_down) == (9, 1, 7, 5)
    assert step.timing is not None


def test_an_eos_in_the_middle_of_a_block_is_the_last_token() -> None:
    prompt = tuple(range(200, 238))  # the target ends at position 40
    steps = list(run(opened(StopParams(20), prompt)))
    assert len(steps) == 1
    assert steps[0].token_ids[-1] == EOS
    assert len(steps[0].token_ids) == 3
    assert (steps[0].num_accepted_tokens, steps[0].finish_reason) == (3, FinishReason.EOS)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_server_that_lost_its_tokens_gets_them_again(kept: int) -> None:
    stop = StopParams(24)
    stream = opened(stop)
    steps = []
    for number, step in enumerate(run(stream, wrong=3)):
        steps.append(step)
        if number == 2:
            stream.forget(kept)
    assert tokens(steps) == undisturbed(PROMPT, stop)
    lost = [step for step in steps if not step.token_ids]
    assert [(step.num_draft_tokens, step.num_accepted_tokens) for step in lost] == [(0, 0)]
    mended = stream.sent[4]
    assert mended.position == len(PROMPT) + kept
    assert mended.confirmed_token_ids == tokens(steps[:3])[kept:]


def test_a_server_that_ends_elsewhere_is_our_fault_and_said_so() -> None:
    stream = opened(StopParams(10))
    stream.tamper = lambda verdict: replace(verdict, finish_reason=FinishReason.EOS)
    with pytest.raises(InternalError, match="disagree where the output ends"):
        list(run(stream))


def test_a_server_that_goes_on_after_the_end_is_our_fault_and_said_so() -> None:
    stream = opened(StopParams(10))
    stream.tamper = lambda verdict: replace(verdict, finish_reason=None)
    with pytest.raises(InternalError, match="disagree where the output ends"):
        list(run(stream))


def test_epochs_rise_with_rejections() -> None:
    stream = opened(StopParams(24))
    steps = list(run(stream, wrong=3))
    rejections = 0
    for draft, step in zip(stream.sent, steps, strict=True):
        assert isinstance(draft, Draft)
        assert draft.epoch == rejections
        rejections += step.num_accepted_tokens != step.num_draft_tokens
    assert rejections > 1


def gated(
    stream: PairedStream, sure: Callable[[tuple[int, ...]], bool], wrong: int | None = None
) -> list[Step]:
    prompt = stream.opening.prompt_token_ids
    return list(
        speculate(
            ClientSession(prompt),
            ScriptedDrafter(wrong, sure),
            stream,
            Stopper(stream.opening.stop, model_eos=(EOS,), room=CONTEXT - len(prompt)),
            FixedPace(4, max_draft_tokens=8),
            PLAIN,
            GREEDY,
            Clock(),
        )
    )


def test_a_sure_block_is_committed_and_told_with_the_next_request() -> None:
    stop = StopParams(12)
    stream = opened(stop)
    answers = iter([True, False, True, False])
    steps = gated(stream, lambda _: next(answers))
    assert tokens(steps) == undisturbed(PROMPT, stop)  # this draft happens to be right
    assert [step.asked for step in steps] == [False, True, False, True]
    assert [len(draft.token_ids) for draft in stream.sent] == [4, 0]
    asked, last = stream.sent
    assert asked.position == len(PROMPT)
    assert asked.confirmed_token_ids == tokens(steps)[:4]
    assert last.confirmed_token_ids == tokens(steps)[9:11]
    committed = steps[0]
    assert (committed.num_draft_tokens, committed.num_accepted_tokens) == (4, None)
    assert (committed.elapsed_ns, committed.bytes_up, committed.timing) == (None, None, None)
    assert steps[-1].finish_reason is FinishReason.MAX_NEW_TOKENS


def test_a_gate_lets_pass_what_is_wrong() -> None:
    stop = StopParams(12)
    steps = gated(opened(stop), lambda _: True, wrong=3)
    assert len(tokens(steps)) == 12
    assert tokens(steps) != undisturbed(PROMPT, stop)


def test_an_eos_in_a_committed_block_ends_the_text_without_a_request() -> None:
    prompt = tuple(range(200, 238))  # the target ends at position 40
    stream = opened(StopParams(20), prompt)
    steps = gated(stream, lambda _: True)
    assert stream.sent == []
    assert steps[-1].finish_reason is FinishReason.EOS
    assert (steps[-1].bytes_up, steps[-1].bytes_down) == (3, 2)  # of opening the session
    assert tokens(steps) == undisturbed(prompt, StopParams(20))


def test_a_server_that_refuses_is_heard_though_nothing_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: PairedStream) -> Opened:
        raise OverloadedError("no room")

    monkeypatch.setattr(PairedStream, "opened", refuse)
    with pytest.raises(OverloadedError):
        gated(opened(StopParams(20), tuple(range(200, 238))), lambda _: True)


@given(st.lists(st.booleans(), min_size=30, max_size=30), st.integers(1, 40))
def test_what_was_committed_is_what_the_server_goes_on_from(
    sure: list[bool], max_new_tokens: int
) -> None:
    """With a draft that is right, no pattern of asking changes the text."""
    stop = StopParams(max_new_tokens)
    stream, answers = opened(stop), iter(sure)
    assert tokens(gated(stream, lambda _: next(answers, False))) == undisturbed(PROMPT, stop)


@given(
    prompt_length=st.integers(10, 38),  # the target ends at position 40
    length=st.integers(0, 6),
    wrong=st.none() | st.integers(2, 6),
    ahead=st.integers(0, 5),
    is_here=st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
)
def test_every_guess_is_accepted_or_a_bonus_token_or_wasted_and_every_draft_is_told_of(
    prompt_length: int, length: int, wrong: int | None, ahead: int, is_here: list[bool]
) -> None:
    stream = opened(StopParams(20), tuple(range(200, 200 + prompt_length)))
    stream.is_here = partial(next, cycle(is_here))
    drafter = CountingDrafter(wrong, ends=())  # drafts on behind the end
    steps = list(run(stream, length=length, ahead=ahead, drafter=drafter))
    assert len(steps) == len(stream.sent)
    assert sum(step.num_guessed_tokens or 0 for step in steps) == drafter.made
    accepted, wasted = (
        sum(getattr(step, name) or 0 for step in steps)
        for name in ("num_accepted_tokens", "num_wasted_tokens")
    )
    judged_ahead = sum(bool(step.ahead and not step.overtaken) for step in steps)
    own = sum(bool(step.token_ids) for step in steps)
    assert judged_ahead <= drafter.made - accepted - wasted <= own
    spans = [span for step in steps for span in step.drafting or ()]
    assert len(set(spans)) == len(spans) == drafter.calls


def test_what_is_in_flight_when_the_text_ends_comes_just_before_the_last_step() -> None:
    prompt = tuple(range(200, 234))  # the target ends at position 40, the drafter does not know
    stream = opened(StopParams(20), prompt)
    stream.is_here = lambda: False
    steps = list(run(stream, length=2, ahead=3, drafter=CountingDrafter(None, ends=())))
    left = [step for step in steps if step.overtaken]
    assert left == steps[-1 - len(left) : -1] != []
    assert {(step.elapsed_ns, step.received_ns, step.bytes_up) for step in left} == {(None,) * 3}
    assert all(step.ahead and step.num_guessed_tokens for step in left)
    assert steps[-1].finish_reason is FinishReason.EOS
