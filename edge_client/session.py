"""The client's half of a session as a pure state machine: values in, values out.

    READY ──next_draft──> WAITING ──VERIFIED, MISMATCH──> READY ──commit──> READY
                             └──VERIFIED with a finish reason──> FINISHED

The client holds every token, so the server's copy is only a cache: `_held` is how
far it is known to reach, and each draft starts there. When the server has lost
some (MISMATCH), `_held` falls back, and when the client commits some without asking,
`_held` stays: the next draft carries what is missing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.errors import InternalError
from common.types import Draft, DraftDistribution, FinishReason, Outcome, Verdict


class State(enum.Enum):
    """Says which event may come next; any other raises InternalError and changes nothing."""

    READY = "ready"  # nothing is in flight: next_draft or commit
    WAITING = "waiting"  # a draft is in flight: apply, with its verdict
    FINISHED = "finished"  # the generation is over: nothing


@dataclass(frozen=True, slots=True)
class Round:
    """Is what one verdict settled.

    `token_ids` are the accepted tokens and the target's own one; none after a
    MISMATCH, which checked nothing and therefore counts no drafted token either.
    """

    token_ids: tuple[int, ...]
    num_draft_tokens: int
    num_accepted_tokens: int
    finish_reason: FinishReason | None


class ClientSession:
    """Knows all tokens of one session, and what to send next."""

    def __init__(self, prompt_token_ids: tuple[int, ...]) -> None:
        self.prompt_length = len(prompt_token_ids)
        self._history = list(prompt_token_ids)
        self._held = len(prompt_token_ids)  # history[:_held] is what the server has
        self._step_id = 0
        self._epoch = 0
        # One at a time; drafting ahead would make this a queue, oldest first.
        self._in_flight: Draft | None = None
        self._finished = False

    @property
    def state(self) -> State:
        """The state, derived from what is in flight and whether the generation is over."""
        if self._finished:
            return State.FINISHED
        return State.READY if self._in_flight is None else State.WAITING

    @property
    def history(self) -> tuple[int, ...]:
        """The prompt and every confirmed token."""
        return tuple(self._history)

    @property
    def epoch(self) -> int:
        """The number of rejections so far."""
        return self._epoch

    def commit(self, token_ids: tuple[int, ...]) -> None:
        """Takes tokens that no target has judged; the server learns of them with the next draft."""
        self._expect(State.READY, "tokens were committed")
        self._history += token_ids

    def next_draft(
        self, token_ids: tuple[int, ...], distributions: tuple[DraftDistribution, ...] = ()
    ) -> Draft:
        """Makes the message that asks for a check of these guesses, which follow `history`."""
        self._expect(State.READY, "a draft was made")
        self._step_id += 1
        self._in_flight = Draft(
            step_id=self._step_id,
            position=self._held,
            epoch=self._epoch,
            token_ids=token_ids,
            confirmed_token_ids=tuple(self._history[self._held :]),
            distributions=distributions,
        )
        return self._in_flight

    def apply(self, verdict: Verdict) -> Round:
        """Takes the verdict on the draft in flight and returns what it settled."""
        self._expect(State.WAITING, f"a verdict on step {verdict.step_id} came")
        draft = self._in_flight
        assert draft is not None  # what WAITING means
        if (verdict.step_id, verdict.epoch) != (draft.step_id, draft.epoch):
            raise _broken(verdict, f"step {draft.step_id}, epoch {draft.epoch} is in flight")
        if verdict.outcome is Outcome.MISMATCH:
            return self._fall_back(draft, verdict)
        if verdict.outcome is Outcome.STALE:
            # Stale means overtaken by a newer epoch, and nothing overtakes a lone draft.
            raise _broken(verdict, "no newer epoch was sent")
        return self._confirm(draft, verdict)

    def _fall_back(self, draft: Draft, verdict: Verdict) -> Round:
        # Strictly backwards, or two ends that disagree would resend for ever.
        if not self.prompt_length <= verdict.position < draft.position:
            raise _broken(
                verdict,
                f"a mismatch must lie in [{self.prompt_length}, {draft.position})",
            )
        self._held = verdict.position
        self._in_flight = None
        return Round((), 0, 0, None)

    def _confirm(self, draft: Draft, verdict: Verdict) -> Round:
        own = () if verdict.next_token_id is None else (verdict.next_token_id,)
        if verdict.accepted > len(draft.token_ids):
            raise _broken(verdict, f"{len(draft.token_ids)} tokens were drafted")
        if not own and (verdict.finish_reason is None or not verdict.accepted):
            raise _broken(verdict, "it brings no token of the target's and does not end within")
        token_ids = draft.token_ids[: verdict.accepted] + own
        position = len(self._history) + len(token_ids)
        if verdict.position != position:
            raise _broken(verdict, f"the session holds {position} tokens")
        self._history += token_ids
        self._held = position
        self._in_flight = None
        self._finished = verdict.finish_reason is not None
        if verdict.accepted < len(draft.token_ids) and own:
            self._epoch += 1
        return Round(token_ids, len(draft.token_ids), verdict.accepted, verdict.finish_reason)

    def _expect(self, state: State, event: str) -> None:
        if self.state is not state:
            raise InternalError(f"{event}, but the session is {self.state.value}")


def _broken(verdict: Verdict, expected: str) -> InternalError:
    return InternalError(f"the server broke the protocol: {expected}, and it sent {verdict}")
