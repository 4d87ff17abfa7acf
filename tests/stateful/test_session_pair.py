"""Both ends' session rules against each other, with no network between: h11's ConnectionPair.

Whatever is drafted, whatever the server forgets, and whatever nonsense comes in
between, the client's history is what the target alone would have written.
"""

from __future__ import annotations

from collections import deque
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
from edge_client.session import ClientSession

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
    """Sends drafts ahead at will; the server takes them and the client hears of it at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = undisturbed()
        self.client = ClientSession(PROMPT)
        self.server = server_holding(())
        self.drafts: deque[Draft] = deque()  # on their way up
        self.verdicts: deque[Verdict] = deque()  # on their way down
        self.in_flight: deque[Draft] = deque()
        self.old: list[Verdict] = []
        self.guessed = self.judged_right = self.wasted = 0

    @precondition(lambda self: not self.client.finished)
    @rule(right=st.integers(0, 6), wrong=st.lists(st.integers(0, VOCAB - 1), max_size=3))
    def guess(self, right: int, wrong: list[int]) -> None:
        """Guesses on, rightly for a while unless what it follows is wrong already."""
        tokens = self.client.tokens
        truth = self.truth[len(tokens) :] if tuple(tokens) == self.truth[: len(tokens)] else ()
        guesses = [*truth[:right], *wrong]
        self.client.guess(guesses)
        self.guessed += len(guesses)
        assert self.client.tokens == [*tokens, *guesses]

    @precondition(lambda self: not self.client.finished)
    @precondition(lambda self: self.client.num_unsent_tokens or not self.client.num_standing)
    @rule()
    def send(self) -> None:
        standing, unsent = self.client.num_standing, self.client.num_unsent_tokens
        draft = self.client.next_draft()
        assert (draft.assumed_bonus_token_id is not None) == (standing > 0)
        assert len(draft.token_ids) == unsent - (standing > 0)
        self.drafts.append(draft)
        self.in_flight.append(draft)

    @precondition(lambda self: not self.client.finished and not self.client.num_in_flight)
    @rule(count=st.integers(1, 5))
    def commit(self, count: int) -> None:
        """Takes tokens without asking, as a gate does that happens to be right."""
        self.wasted += self.client.num_unsent_tokens
        held = len(self.client.history)
        certain = tuple(t for t in self.truth[held : held + count] if t != EOS)
        self.client.commit(certain)
        assert self.client.history == self.truth[: held + len(certain)]

    @precondition(lambda self: self.drafts)
    @rule()
    def serve(self) -> None:
        draft = self.drafts.popleft()
        admitted = self.server.admit(draft)
        if not isinstance(admitted, Verdict):
            if draft.assumed_bonus_token_id is not None:
                assert admitted.context == self.truth[: draft.position]
            admitted = self.server.settle(draft, admitted, judged(admitted))
        self.verdicts.append(admitted)

    @precondition(lambda self: self.verdicts and not self.client.finished)
    @rule()
    def hear(self) -> None:
        verdict, draft = self.verdicts.popleft(), self.in_flight.popleft()
        before, epoch = self.client.history, self.client.epoch
        settled = self.client.apply(verdict)
        self.old.append(verdict)
        self.wasted += settled.num_wasted_tokens
        self.judged_right += settled.num_accepted_tokens
        if settled.token_ids:
            assert self.client.history == (*before, *settled.token_ids)
            assert draft.position + len(draft.confirmed_token_ids) == len(before)
        else:
            assert self.client.history == before
        if settled.overtaken:
            assert draft.epoch < epoch == self.client.epoch
        elif verdict.outcome is Outcome.VERIFIED and not self.client.finished:
            fits = settled.num_accepted_tokens == settled.num_draft_tokens
            assert fits or self.client.epoch == epoch + 1

    # What a stream never does is left out: to lose tokens between a draft and one ahead of it.
    @precondition(lambda self: not self.server.finished and not self.verdicts)
    @precondition(lambda self: not self.drafts or self.drafts[0].assumed_bonus_token_id is None)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        generated = tuple(self.server.history[len(PROMPT) :])
        kept = data.draw(st.integers(0, len(generated)))
        self.server = server_holding(generated[:kept])

    @precondition(lambda self: self.in_flight and not self.client.finished)
    @rule(data=st.data())
    def hear_nonsense(self, data: st.DataObject) -> None:
        """Any verdict but the right kind is refused, and nothing has changed."""
        draft = self.in_flight[0]
        held = len(self.client.history)
        right = Verdict(draft.step_id, draft.epoch, Outcome.VERIFIED, held + 1, 0, 1)
        overtaken = draft.epoch < self.client.epoch
        nonsense = data.draw(
            st.sampled_from(
                [
                    *self.old,
                    replace(right, step_id=draft.step_id + 1),
                    replace(right, epoch=draft.epoch + 1),
                    replace(right, position=held),
                    replace(right, accepted=len(draft.token_ids) + 1),
                    replace(right, next_token_id=None),
                    right if overtaken else replace(right, outcome=Outcome.STALE),
                    replace(right, outcome=Outcome.MISMATCH, position=draft.position),
                    replace(right, outcome=Outcome.MISMATCH, position=len(PROMPT) - 1),
                ]
            )
        )
        before = (self.client.tokens, self.client.num_in_flight, self.client.epoch)
        with pytest.raises(InternalError):
            self.client.apply(nonsense)
        assert (self.client.tokens, self.client.num_in_flight, self.client.epoch) == before

    @precondition(lambda self: not self.in_flight)
    @rule(data=st.data())
    def hear_unasked(self, data: st.DataObject) -> None:
        verdict = data.draw(st.sampled_from([*self.old, Verdict(1, 0, Outcome.VERIFIED, 4, 0, 1)]))
        before = self.client.tokens
        with pytest.raises(InternalError):
            self.client.apply(verdict)
        assert self.client.tokens == before

    @precondition(lambda self: self.client.finished)
    @rule()
    def go_on_after_the_end(self) -> None:
        before = self.client.history
        for event in (
            self.client.next_draft,
            lambda: self.client.commit((1,)),
            lambda: self.client.guess((1,)),
        ):
            with pytest.raises(InternalError):
                event()
        assert self.client.history == before

    @invariant()
    def the_text_is_the_targets(self) -> None:
        assert self.client.history == self.truth[: len(self.client.history)]
        assert self.client.finished == (len(self.client.history) == len(self.truth))

    @invariant()
    def no_guess_is_lost_from_the_count(self) -> None:
        """What was guessed is right, wasted, or still ahead; the rest are right bonus tokens."""
        ahead = len(self.client.tokens) - len(self.client.history)
        bonus = self.guessed - self.judged_right - self.wasted - ahead
        verified = sum(verdict.outcome is Outcome.VERIFIED for verdict in self.old)
        assert 0 <= bonus <= verified


TestSessionPair = SessionPairMachine.TestCase
