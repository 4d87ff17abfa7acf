"""Both ends' session rules where the target runs ahead, in any order of arrival.

The target may write on at any time between two requests, drafts may stand, be overtaken or be
passed by it, and the server may be lost and opened again: the text is the target's own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_server.acceptance import Check
from cloud_server.sessions import TargetSession
from common.errors import InternalError, InvalidRequestError
from common.types import (
    AheadTokens,
    Draft,
    OpenSession,
    Outcome,
    Peer,
    SamplingParams,
    StepTiming,
    StopParams,
    Verdict,
)
from edge_client.session import ClientSession
from tests.stateful.test_session_pair import CONTEXT, EOS, PROMPT, VOCAB, judged, undisturbed


def opened(generated: tuple[int, ...]) -> TargetSession:
    return TargetSession(
        OpenSession(
            Peer("", "", 0, ""),
            PROMPT,
            SamplingParams(),
            StopParams(100),
            generated,
            run_ahead=1,
        ),
        context_length=CONTEXT,
        model_eos=(EOS,),
        detokenizer=lambda: lambda token: "",
    )


class RunAheadPairMachine(RuleBasedStateMachine):
    """Interleaves drafts, tokens the target writes alone, what is heard, and losses at will."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = undisturbed()
        self.client = ClientSession(PROMPT, run_ahead=1)
        self.server = opened(())
        self.drafts: deque[Draft] = deque()  # on their way up
        self.told: deque[Verdict | AheadTokens] = deque()  # on their way down
        self.in_flight: deque[Draft] = deque()
        self.guessed = self.wasted = 0

    @precondition(lambda self: not self.client.finished)
    @rule(right=st.integers(0, 6), wrong=st.lists(st.integers(0, VOCAB - 1), max_size=3))
    def guess(self, right: int, wrong: list[int]) -> None:
        tokens = self.client.tokens
        truth = self.truth[len(tokens) :] if tuple(tokens) == self.truth[: len(tokens)] else ()
        guesses = [*truth[:right], *wrong]
        self.client.guess(guesses)
        self.guessed += len(guesses)

    @precondition(lambda self: not self.client.finished)
    @precondition(lambda self: self.client.num_unsent_tokens or not self.client.num_standing)
    @rule()
    def send(self) -> None:
        self.drafts.append(self.client.next_draft())
        self.in_flight.append(self.drafts[-1])

    @precondition(lambda self: not self.server.finished)
    @rule(count=st.integers(1, 6))
    def write_alone(self, count: int) -> None:
        for _ in range(count):
            if not self.server.finished:
                position = self.server.position
                draft = Draft(0, position, self.server.epoch)
                check = self.server.admit(draft)
                assert isinstance(check, Check)
                verdict = self.server.settle(draft, check, judged(check))
                token_ids = tuple(self.server.history[position:])
                self.told.append(
                    AheadTokens(position, token_ids, verdict.finish_reason, StepTiming())
                )

    @precondition(lambda self: self.drafts)
    @rule()
    def serve(self) -> None:
        draft = self.drafts.popleft()
        before = tuple(self.server.history)
        was_over = self.server.finished
        admitted = self.server.admit(draft)
        guesses = draft.token_ids
        if isinstance(admitted, Check):
            assert admitted.context == before == self.truth[: len(before)]
            held = before[draft.position :]
            assert guesses[: len(held)] == held  # or there would be nothing to run
            admitted = self.server.settle(draft, admitted, judged(admitted))
            self.server.remember(admitted)
        else:
            assert tuple(self.server.history) == before
        assert not was_over or admitted.outcome is Outcome.STALE
        if admitted.outcome is Outcome.VERIFIED:
            right = self.truth[draft.position :]
            assert guesses[: admitted.accepted] == right[: admitted.accepted]
            if admitted.next_token_id is not None:
                assert admitted.next_token_id == right[admitted.accepted]
        self.told.append(admitted)

    @precondition(lambda self: self.told and not self.client.finished)
    @rule()
    def hear(self) -> None:
        told, before = self.told.popleft(), self.client.history
        if isinstance(told, AheadTokens):
            settled = self.client.receive_ahead(told)
            assert (settled.num_draft_tokens, settled.num_accepted_tokens) == (0, 0)
        else:
            self.in_flight.popleft()
            settled = self.client.apply(told)
            if told.outcome is Outcome.VERIFIED:
                assert settled.num_accepted_tokens == told.accepted
        assert self.client.history == (*before, *settled.token_ids)
        self.wasted += settled.num_wasted_tokens

    @precondition(lambda self: not self.client.finished)
    @rule()
    def lose_the_stream(self) -> None:
        """Opens another session with all that was heard, and sends again what was not answered."""
        self.server = opened(self.client.history[len(PROMPT) :])
        self.told.clear()
        self.drafts = deque(self.in_flight)

    @precondition(lambda self: not self.client.finished)
    @rule(data=st.data())
    def hear_nonsense(self, data: st.DataObject) -> None:
        """Tokens that leave a gap, or disagree with what is known, are refused; nothing changes."""
        held = self.client.history
        gap = AheadTokens(len(held) + 1, (1,), None, StepTiming())
        other = AheadTokens(len(held) - 1, ((held[-1] + 1) % VOCAB, 1), None, StepTiming())
        nothing = replace(gap, position=len(held), token_ids=())
        before = (self.client.tokens, self.client.num_in_flight, self.client.epoch)
        with pytest.raises(InternalError, match="broke the protocol"):
            self.client.receive_ahead(data.draw(st.sampled_from([gap, other, nothing])))
        assert (self.client.tokens, self.client.num_in_flight, self.client.epoch) == before

    @precondition(lambda self: not self.server.finished and self.server.position > len(PROMPT))
    @rule(data=st.data())
    def confirm_otherwise(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(len(PROMPT), self.server.position - 1))
        wrong = (self.server.history[position] + 1) % VOCAB
        before = list(self.server.history)
        with pytest.raises(InvalidRequestError, match="rolls nothing back"):
            self.server.admit(Draft(10**6, position, self.server.epoch, (), (wrong,)))
        assert self.server.history == before

    @precondition(lambda self: self.client.finished)
    @rule()
    def hear_after_the_end(self) -> None:
        with pytest.raises(InternalError, match="finished"):
            self.client.receive_ahead(AheadTokens(len(self.truth), (1,), None, StepTiming()))

    @invariant()
    def the_text_is_the_targets(self) -> None:
        history = self.client.history
        assert history == self.truth[: len(history)]
        assert tuple(self.server.history) == self.truth[: self.server.position]
        assert self.client.finished == (len(history) == len(self.truth))

    @invariant()
    def no_guess_is_wasted_twice(self) -> None:
        ahead = len(self.client.tokens) - len(self.client.history)
        assert self.wasted + ahead <= self.guessed


TestRunAheadPair = RunAheadPairMachine.TestCase


def test_behind_a_draft_that_the_target_has_passed_nothing_is_assumed() -> None:
    """Its verdict makes no token more, so none may be built on."""
    truth, server = undisturbed(), opened(())
    client, start = ClientSession(PROMPT, run_ahead=9), len(PROMPT)
    client.guess(truth[start : start + 1])
    first = client.next_draft()
    for position in range(start, start + 2):
        draft = Draft(0, position, 0)
        check = server.admit(draft)
        assert isinstance(check, Check)
        server.settle(draft, check, judged(check))
        told = AheadTokens(position, (server.history[-1],), None, StepTiming())
        client.receive_ahead(told)
    client.guess(truth[start + 2 : start + 4])
    second = client.next_draft()
    assert second.assumed_bonus_token_id is None
    told_first = server.admit(first)
    assert isinstance(told_first, Verdict)
    client.apply(told_first)
    check = server.admit(second)
    assert isinstance(check, Check)
    client.apply(server.settle(second, check, judged(check)))
    assert client.history == truth[: start + 5]
