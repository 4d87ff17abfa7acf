"""The server's session against a plain model of it: whatever a client sends, in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_server.acceptance import Check, Judged
from cloud_server.sessions import TargetSession
from common.errors import InvalidRequestError, PromptError
from common.types import (
    Draft,
    DraftDistribution,
    FinishReason,
    OpenSession,
    Outcome,
    Peer,
    SamplingParams,
    StopParams,
    Verdict,
    VerificationMode,
    VerificationParams,
)

VOCAB = 5
EOS = 4
PROMPT = (0, 1, 2)
CONTEXT = 24


def target(context: tuple[int, ...]) -> int:
    """Is the target model: any pure function of the tokens before will do."""
    return EOS if len(context) == 18 else (3 * sum(context[-2:]) + len(context)) % EOS


def judged(check: Check) -> Judged:
    """Judges by the coupled rule."""
    choices = [
        target((*check.context, *check.guesses[:count])) for count in range(len(check.guesses) + 1)
    ]
    accepted = next((i for i, guess in enumerate(check.guesses) if guess != choices[i]), -1)
    return Judged(accepted if accepted >= 0 else len(check.guesses), choices[accepted])


def undisturbed(max_new_tokens: int) -> list[int]:
    tokens = list(PROMPT)
    while len(tokens) < CONTEXT and len(tokens) - len(PROMPT) < max_new_tokens:
        tokens.append(target(tuple(tokens)))
        if tokens[-1] == EOS:
            break
    return tokens


def opening(max_new_tokens: int = 100, generated: tuple[int, ...] = ()) -> OpenSession:
    return OpenSession(
        Peer("", "", 0, ""), PROMPT, SamplingParams(), StopParams(max_new_tokens), generated
    )


def session(max_new_tokens: int = 100, generated: tuple[int, ...] = ()) -> TargetSession:
    return TargetSession(
        opening(max_new_tokens, generated),
        context_length=CONTEXT,
        model_eos=(EOS,),
        detokenizer=lambda: lambda token: "",
    )


class TargetSessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.session = session()
        self.truth = undisturbed(100)
        self.step_id = 0
        self.epoch = 0
        self.read: list[int] = []  # what the target last read, as its cache holds it
        self.answered: list[tuple[Draft, Verdict]] = []

    def send(self, draft: Draft) -> Verdict:
        admitted = self.session.admit(draft)
        if isinstance(admitted, Verdict):
            return admitted
        sequence = [*admitted.context, *admitted.guesses]
        assert self.read[: admitted.valid] == sequence[: min(admitted.valid, len(self.read))]
        self.read = sequence
        verdict = self.session.settle(draft, admitted, judged(admitted))
        self.session.remember(verdict)
        self.answered.append((draft, verdict))
        return verdict

    def new_draft(
        self, position: int, guesses: list[int], confirmed: tuple[int, ...] = ()
    ) -> Draft:
        self.step_id += 1
        return Draft(self.step_id, position, self.epoch, tuple(guesses), confirmed)

    @precondition(lambda self: not self.session.finished)
    @rule(wrong=st.lists(st.integers(0, VOCAB - 1), max_size=4), right=st.integers(0, 6))
    def verify(self, wrong: list[int], right: int) -> None:
        position = self.session.position
        guesses = [*self.truth[position : position + right], *wrong]
        verdict = self.send(self.new_draft(position, guesses))
        assert verdict.outcome is Outcome.VERIFIED
        made = guesses[: verdict.accepted]
        if verdict.next_token_id is not None:
            made.append(verdict.next_token_id)
        assert made
        assert made == self.truth[position : verdict.position]

    @precondition(lambda self: self.session.position > len(PROMPT))
    @rule(data=st.data(), resend=st.booleans())
    def roll_back(self, data: st.DataObject, resend: bool) -> None:
        held = self.session.position
        position = data.draw(st.integers(len(PROMPT), held - 1))
        confirmed = tuple(self.truth[position : held - 1]) if resend else ()
        verdict = self.send(self.new_draft(position, [], confirmed))
        assert verdict.position == position + len(confirmed) + 1

    @precondition(lambda self: bool(self.answered))
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        draft, verdict = data.draw(st.sampled_from(self.answered))
        before = list(self.session.history)
        assert self.send(draft) is verdict
        assert self.session.history == before

    @rule(beyond=st.integers(1, 5))
    def ask_too_far(self, beyond: int) -> None:
        held = self.session.position
        self.epoch += 1
        verdict = self.send(self.new_draft(held + beyond, [1]))
        assert (verdict.outcome, verdict.position) == (Outcome.MISMATCH, held)
        assert self.send(Draft(10**6, held, self.epoch - 1)).outcome is Outcome.STALE

    @precondition(lambda self: not self.session.finished)
    @rule()
    def start_an_epoch(self) -> None:
        self.epoch += 1
        old = self.new_draft(self.session.position, [])
        self.send(self.new_draft(self.session.position, []))
        stale = Draft(old.step_id + 1000, old.position, self.epoch - 1)
        before = list(self.session.history)
        assert self.send(stale).outcome is Outcome.STALE
        assert self.session.history == before

    @rule(offset=st.integers(-3, 3), assumed=st.integers(0, VOCAB - 1))
    def send_ahead(self, offset: int, assumed: int) -> None:
        """Runs only what stands exactly where the session ends, after the token it assumes."""
        held = self.session.position
        position = max(len(PROMPT), held + offset)
        fits = position == held and self.session.history[-1] == assumed
        before, read, epoch = list(self.session.history), self.read, self.session.epoch
        draft = replace(self.new_draft(position, [1]), assumed_bonus_token_id=assumed)
        verdict = self.send(draft)
        if verdict.outcome is Outcome.VERIFIED:
            assert fits
            return
        assert (verdict.outcome, verdict.position) == (Outcome.STALE, held)
        assert not fits or self.session.finished
        assert (self.session.history, self.read, self.session.epoch) == (before, read, epoch)

    @rule(position=st.integers(0, len(PROMPT) - 1))
    def reach_into_the_prompt(self, position: int) -> None:
        before = list(self.session.history)
        with pytest.raises(InvalidRequestError, match="inside the prompt"):
            self.send(self.new_draft(position, []))
        assert self.session.history == before

    @precondition(lambda self: self.session.finished)
    @rule()
    def ask_after_the_end(self) -> None:
        with pytest.raises(InvalidRequestError, match="generation ended"):
            self.send(self.new_draft(self.session.position, []))

    @invariant()
    def holds_the_undisturbed_text(self) -> None:
        assert self.session.history == self.truth[: self.session.position]
        assert self.session.finished == (self.session.position == len(self.truth))
        assert self.session.position <= self.session.capacity


TestTargetSession = TargetSessionMachine.TestCase


def test_a_block_that_ends_in_its_middle_is_cut_and_counted_there() -> None:
    truth = undisturbed(4)
    held = session(max_new_tokens=4)
    draft = Draft(1, len(PROMPT), 0, (*truth[len(PROMPT) :], 0, 0, 0))
    check = held.admit(draft)
    assert isinstance(check, Check)
    assert len(check.guesses) == 4  # what could never be output is not run
    verdict = held.settle(draft, check, judged(check))
    assert (verdict.accepted, verdict.next_token_id) == (4, None)
    assert verdict.finish_reason is FinishReason.MAX_NEW_TOKENS


def test_a_resumed_session_counts_what_was_generated_before() -> None:
    truth = undisturbed(6)
    held = session(max_new_tokens=6, generated=tuple(truth[3:6]))
    draft = Draft(1, 6, 0)
    check = held.admit(draft)
    assert isinstance(check, Check)
    held.settle(draft, check, judged(check))
    assert held.stopper.remaining == 2


def test_a_resumed_session_that_is_already_over_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="already end the generation"):
        session(max_new_tokens=2, generated=(1, 1, 1))


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(PromptError, match=r"3 tokens .* context is 3"):
        TargetSession(
            opening(), context_length=3, model_eos=(), detokenizer=lambda: lambda token: ""
        )


ORIGIN = DraftDistribution((1,), (1,))


@pytest.mark.parametrize(
    ("mode", "temperature", "origins", "needed"),
    [
        (VerificationMode.REJECTION, 1.0, (), 2),
        (VerificationMode.REJECTION, 1.0, (ORIGIN,), 2),
        (VerificationMode.REJECTION, 0.0, (ORIGIN, ORIGIN), 0),
        (VerificationMode.COUPLED, 1.0, (ORIGIN, ORIGIN), 0),
    ],
)
def test_guesses_say_what_they_were_drawn_from_where_the_rule_needs_it_and_nowhere_else(
    mode: VerificationMode, temperature: float, origins: tuple[DraftDistribution, ...], needed: int
) -> None:
    held = TargetSession(
        replace(
            opening(),
            sampling=SamplingParams(temperature),
            verification=VerificationParams(mode),
        ),
        context_length=CONTEXT,
        model_eos=(EOS,),
        detokenizer=lambda: lambda token: "",
    )
    draft = Draft(1, len(PROMPT), 3, (1, 1), distributions=origins)
    with pytest.raises(InvalidRequestError, match=f"by {mode.value} needs {needed}"):
        held.admit(draft)
    assert (held.epoch, held.position) == (0, len(PROMPT))
    right = replace(draft, distributions=(ORIGIN,) * needed)
    check = held.admit(right)
    assert isinstance(check, Check)
    assert check.distributions == right.distributions


def test_what_could_never_be_output_is_cut_with_its_distributions() -> None:
    held = TargetSession(
        replace(
            opening(max_new_tokens=2),
            sampling=SamplingParams(1.0),
            verification=VerificationParams(VerificationMode.REJECTION),
        ),
        context_length=CONTEXT,
        model_eos=(EOS,),
        detokenizer=lambda: lambda token: "",
    )
    check = held.admit(Draft(1, len(PROMPT), 0, (1,) * 5, distributions=(ORIGIN,) * 5))
    assert isinstance(check, Check)
    assert len(check.guesses) == len(check.distributions) == 2


def test_a_refused_draft_changes_nothing() -> None:
    held = session()
    with pytest.raises(InvalidRequestError, match="inside the prompt"):
        held.admit(Draft(1, 0, epoch=9))
    assert (held.epoch, held.position) == (0, len(PROMPT))
