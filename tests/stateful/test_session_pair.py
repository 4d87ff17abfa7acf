"""Both ends' session rules against each other, with no network between: h11's ConnectionPair.

Whatever is drafted, whatever the server forgets, and whatever nonsense comes in
between, the client's history is what the target alone would have written.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_server.acceptance import Check, Judged
from cloud_server.sessions import TargetSession
from common.errors import InternalError
from common.types import (
    Draft,
    OpenSession,
    Outcome,
    Peer,
    SamplingParams,
    StopParams,
    Verdict,
)
from edge_client.session import ClientSession, State

VOCAB = 5
EOS = 4
PROMPT: tuple[int, ...] = (0, 1, 2)
CONTEXT = 24


def target(tokens: tuple[int, ...]) -> int:
    """Is the target model: any pure function of the tokens before will do."""
    return EOS if len(tokens) == 18 else (3 * sum(tokens[-2:]) + len(tokens)) % EOS


def judged(check: Check) -> Judged:
    """Judges by the coupled rule."""
    choices = [
        target((*check.context, *check.guesses[:count])) for count in range(len(check.guesses) + 1)
    ]
    accepted = next((i for i, guess in enumerate(check.guesses) if guess != choices[i]), -1)
    return Judged(accepted if accepted >= 0 else len(check.guesses), choices[accepted])


def undisturbed() -> tuple[int, ...]:
    tokens = PROMPT
    while tokens[-1] != EOS:
        tokens = (*tokens, target(tokens))
    return tokens


def server_holding(generated: tuple[int, ...]) -> TargetSession:
    return TargetSession(
        OpenSession(Peer("", "", 0, ""), PROMPT, SamplingParams(), StopParams(100), generated),
        context_length=CONTEXT,
        model_eos=(EOS,),
        detokenizer=lambda: lambda token: "",
    )


class SessionPairMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.truth = undisturbed()
        self.client = ClientSession(PROMPT)
        self.server = server_holding(())
        self.in_flight: Draft | None = None
        self.old: list[Verdict] = []
        self.rejections = 0
        self.reach = len(PROMPT)  # where the server said its tokens end

    @precondition(lambda self: self.client.state is State.READY)
    @rule(right=st.integers(0, 6), wrong=st.lists(st.integers(0, VOCAB - 1), max_size=4))
    def draft(self, right: int, wrong: list[int]) -> None:
        held = len(self.client.history)
        self.in_flight = self.client.next_draft((*self.truth[held : held + right], *wrong))
        assert self.in_flight.epoch == self.rejections
        assert self.in_flight.position == self.reach

    @precondition(lambda self: self.client.state is State.READY)
    @rule(count=st.integers(1, 5))
    def commit(self, count: int) -> None:
        """Takes tokens without asking, as a gate does that happens to be right."""
        held = len(self.client.history)
        certain = tuple(t for t in self.truth[held : held + count] if t != EOS)
        self.client.commit(certain)
        assert self.client.history == self.truth[: held + len(certain)]

    @precondition(lambda self: self.client.state is State.WAITING)
    @rule()
    def answer(self) -> None:
        draft = self.in_flight
        assert draft is not None
        verdict = self.serve(draft)
        assert verdict.outcome is not Outcome.STALE
        settled = self.client.apply(verdict)
        self.old.append(verdict)
        self.reach = verdict.position
        if verdict.outcome is Outcome.MISMATCH:
            assert settled.token_ids == ()
        else:
            assert settled.token_ids
            assert self.client.history == tuple(self.server.history)
            rejected = settled.num_accepted_tokens < settled.num_draft_tokens
            self.rejections += rejected and verdict.next_token_id is not None

    def serve(self, draft: Draft) -> Verdict:
        admitted = self.server.admit(draft)
        if isinstance(admitted, Verdict):
            return admitted
        return self.server.settle(draft, admitted, judged(admitted))

    @precondition(lambda self: not self.server.finished)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        generated = tuple(self.server.history[len(PROMPT) :])
        kept = data.draw(st.integers(0, len(generated)))
        self.server = server_holding(generated[:kept])

    @precondition(lambda self: self.client.state is State.WAITING)
    @rule(data=st.data())
    def hear_nonsense(self, data: st.DataObject) -> None:
        """Any verdict but the right kind is refused, and nothing has changed."""
        draft = self.in_flight
        assert draft is not None
        held = len(self.client.history)
        right = Verdict(draft.step_id, draft.epoch, Outcome.VERIFIED, held + 1, 0, 1)
        nonsense = data.draw(
            st.sampled_from(
                [
                    *self.old,
                    replace(right, step_id=draft.step_id + 1),
                    replace(right, epoch=draft.epoch + 1),
                    replace(right, position=held),
                    replace(right, accepted=len(draft.token_ids) + 1),
                    replace(right, next_token_id=None),
                    replace(right, outcome=Outcome.STALE),
                    replace(right, outcome=Outcome.MISMATCH, position=draft.position),
                    replace(right, outcome=Outcome.MISMATCH, position=len(PROMPT) - 1),
                ]
            )
        )
        before = self.client.history
        with pytest.raises(InternalError):
            self.client.apply(nonsense)
        assert (self.client.history, self.client.state) == (before, State.WAITING)

    @precondition(lambda self: self.client.state is not State.WAITING)
    @rule(data=st.data())
    def hear_unasked(self, data: st.DataObject) -> None:
        verdict = data.draw(st.sampled_from([*self.old, Verdict(1, 0, Outcome.VERIFIED, 4, 0, 1)]))
        before = (self.client.history, self.client.state)
        with pytest.raises(InternalError):
            self.client.apply(verdict)
        assert (self.client.history, self.client.state) == before

    @precondition(lambda self: self.client.state is not State.READY)
    @rule()
    def draft_out_of_turn(self) -> None:
        before = self.client.history
        with pytest.raises(InternalError):
            self.client.next_draft(())
        with pytest.raises(InternalError):
            self.client.commit((1,))
        assert self.client.history == before

    @invariant()
    def the_text_is_the_targets(self) -> None:
        assert self.client.history == self.truth[: len(self.client.history)]
        assert self.client.epoch == self.rejections
        finished = self.client.state is State.FINISHED
        assert finished == (len(self.client.history) == len(self.truth))


TestSessionPair = SessionPairMachine.TestCase
