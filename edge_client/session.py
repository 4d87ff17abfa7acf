"""The client's half of a session as a pure state machine: values in, values out.

    history | in flight: guesses, assumed bonus, guesses, … | unsent guesses

The client holds every token, so the server's copy is only a cache. Guesses run ahead of
what is confirmed; a draft sent while another is in flight stands on the guess that all of
that one is accepted, and on the bonus token that would follow. A verdict that fits lets all
of it stand; any other overtakes what follows: a new epoch begins, and the server drops what
it has not seen of the old one without a forward, as its `assumed_bonus_token_id` fails.

`_held` is how far the server's copy is known to reach, and a draft with nothing before it
starts there. When the server has lost some (MISMATCH, or STALE of what nothing overtook), it
falls back, and when the client commits some without asking, it stays: the next draft carries what
is missing.

Where the target runs ahead, its tokens come between the verdicts and are confirmed like theirs:
guesses that agree are confirmed and those behind them stand, others are overtaken. A draft whose
bonus token has come so is passed: its verdict may add none, and nothing is sent behind it. A
verdict then brings only what lies beyond the history and must agree with what does not; a draft
that was overtaken may get one as well, as all that the server says is the target's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from common.errors import InternalError
from common.types import (
    AheadTokens,
    Draft,
    DraftDistribution,
    FinishReason,
    Outcome,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Round:
    """Is what one verdict settled.

    `token_ids` are the accepted tokens and the target's own one; none after a
    MISMATCH, which checked nothing and therefore counts no drafted token either, and
    none of a draft that was `overtaken` before the target saw it. `num_wasted_tokens` are
    the guesses this verdict has thrown away, rejected or standing on rejected ones.
    """

    token_ids: tuple[int, ...] = ()
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    finish_reason: FinishReason | None = None
    num_wasted_tokens: int = 0
    overtaken: bool = False


class ClientSession:
    """Knows all tokens of one session, and what to send next."""

    def __init__(self, prompt_token_ids: tuple[int, ...], *, run_ahead: int = 0) -> None:
        """`run_ahead`: how many tokens the target may write alone after each draft."""
        self.runs_ahead = run_ahead > 0
        self._granted = run_ahead  # as far as is known: the server may allow fewer
        self._alone = 0  # how many of them have come since the last draft was sent
        self.prompt_length = len(prompt_token_ids)
        self._history = list(prompt_token_ids)
        self._held = len(prompt_token_ids)  # history[:_held] is what the server has
        self._step_id = 0
        self._epoch = 0
        self._in_flight: deque[Draft] = deque()  # oldest first
        self._ahead: list[int] = []  # what follows the history if every guess is right
        self._origins: list[DraftDistribution] = []  # one a guess where the rule needs them
        self._sent = 0  # how many guesses are in flight
        self._finished = False

    @property
    def history(self) -> tuple[int, ...]:
        """The prompt and every confirmed token."""
        return tuple(self._history)

    @property
    def tokens(self) -> list[int]:
        """The history and every guess after it: what the next guess follows."""
        return self._history + self._ahead

    @property
    def epoch(self) -> int:
        """How often a verdict has overtaken guesses so far."""
        return self._epoch

    @property
    def finished(self) -> bool:
        """Whether the generation is over."""
        return self._finished

    @property
    def num_in_flight(self) -> int:
        """How many verdicts are awaited."""
        return len(self._in_flight)

    @property
    def num_standing(self) -> int:
        """How many of these are neither overtaken nor passed: what follows them is unknown."""
        known = len(self._history)
        mine = (draft for draft in self._in_flight if draft.epoch == self._epoch)
        return sum(_end(draft) >= known for draft in mine)

    @property
    def num_sent_tokens(self) -> int:
        """How many guesses in flight may still be right, assumed bonus tokens among them."""
        return self._sent

    @property
    def num_unsent_tokens(self) -> int:
        """How many guesses the next draft has; its first is the assumed bonus token, if any."""
        return len(self._ahead) - self._sent

    @property
    def is_written_on(self) -> bool:
        """Whether the target may write on for long yet before it needs another draft."""
        return self._step_id > 0 and self._alone < self._granted // 4

    def fall_silent(self) -> None:
        """Takes note that the target has written no more: fewer were granted, or none."""
        self._granted = self._alone

    def guess(
        self, token_ids: Sequence[int], distributions: Sequence[DraftDistribution] = ()
    ) -> None:
        """Takes guesses that follow `tokens`, each with what it was drawn from or none of them."""
        self._expect(not self._finished, "a guess was made")
        self._ahead += token_ids
        self._origins += distributions

    def commit(self, token_ids: tuple[int, ...]) -> None:
        """Takes tokens that no target has judged; the server learns of them with the next draft."""
        self._expect(not self._finished and not self._in_flight, "tokens were committed")
        self._history += token_ids
        self._forget()

    def next_draft(self) -> Draft:
        """Makes the message that asks for a check of the unsent guesses.

        Behind a draft that stands, the first of them is the bonus token it assumes.
        """
        self._expect(not self._finished, "a draft was made")
        start, assumed = self._sent, None
        position, confirmed = self._held, tuple(self._history[self._held :])
        if self.num_standing:
            self._expect(start < len(self._ahead), "a draft was made that assumes no bonus token")
            assumed = self._ahead[start]
            start += 1
            position, confirmed = len(self._history) + start, ()
        self._step_id += 1
        self._alone = 0
        draft = Draft(
            step_id=self._step_id,
            position=position,
            epoch=self._epoch,
            token_ids=tuple(self._ahead[start:]),
            confirmed_token_ids=confirmed,
            distributions=tuple(self._origins[start:]),
            assumed_bonus_token_id=assumed,
        )
        self._in_flight.append(draft)
        self._sent = len(self._ahead)
        return draft

    def apply(self, verdict: Verdict) -> Round:
        """Takes the verdict on the oldest draft in flight and returns what it settled."""
        self._expect(bool(self._in_flight), f"a verdict on step {verdict.step_id} came")
        draft = self._in_flight[0]
        if (verdict.step_id, verdict.epoch) != (draft.step_id, draft.epoch):
            raise _broken(verdict, f"step {draft.step_id}, epoch {draft.epoch} is in flight")
        may_be_run = self.runs_ahead and verdict.outcome is Outcome.VERIFIED
        if draft.epoch < self._epoch and not may_be_run:
            return self._drop(verdict)
        if verdict.outcome is Outcome.VERIFIED:
            return self._confirm(draft, verdict)
        # How a server says that it has lost tokens depends on whether the draft was sent ahead.
        lost = Outcome.MISMATCH if draft.assumed_bonus_token_id is None else Outcome.STALE
        if verdict.outcome is not lost:
            raise _broken(verdict, "nothing overtook this draft")
        return self._fall_back(verdict)

    def receive_ahead(self, ahead: AheadTokens) -> Round:
        """Takes what the target wrote alone; none of it is new when the server had lost some."""
        self._expect(self.runs_ahead and not self._finished, "the target wrote alone")
        if not ahead.token_ids:
            raise _broken(ahead, "there is a token at least")
        new = self._beyond(ahead.position, ahead.token_ids, ahead)
        self._held = ahead.position + len(ahead.token_ids)
        self._alone += len(ahead.token_ids)
        self._granted = max(self._granted, self._alone)
        return Round(
            new,
            finish_reason=ahead.finish_reason,
            num_wasted_tokens=self._take(new, ahead.finish_reason),
        )

    def _beyond(
        self, position: int, token_ids: tuple[int, ...], said: Verdict | AheadTokens
    ) -> tuple[int, ...]:
        """Returns the tokens beyond the history; those within it must be the same."""
        known = self._history[position : position + len(token_ids)]
        if not self.prompt_length <= position <= len(self._history):
            raise _broken(said, f"the session holds {len(self._history)} tokens")
        if list(token_ids[: len(known)]) != known:
            raise _broken(said, f"from {position} on the target had written {known}")
        return token_ids[len(known) :]

    def _drop(self, verdict: Verdict) -> Round:
        lost = self.runs_ahead and verdict.outcome is Outcome.MISMATCH
        if verdict.outcome is not Outcome.STALE and not lost:
            raise _broken(verdict, "that draft was overtaken, and nothing of it may be run")
        self._in_flight.popleft()
        return Round(overtaken=True)

    def _fall_back(self, verdict: Verdict) -> Round:
        # Strictly backwards, or two ends that disagree would resend for ever.
        if not self.prompt_length <= verdict.position < self._held:
            raise _broken(verdict, f"what it lost must lie in [{self.prompt_length}, {self._held})")
        self._in_flight.popleft()
        self._held = verdict.position
        return Round(num_wasted_tokens=self._overtake())

    def _confirm(self, draft: Draft, verdict: Verdict) -> Round:
        own = () if verdict.next_token_id is None else (verdict.next_token_id,)
        if verdict.accepted > len(draft.token_ids):
            raise _broken(verdict, f"{len(draft.token_ids)} tokens were drafted")
        if not own and (verdict.finish_reason is None or not verdict.accepted):
            raise _broken(verdict, "it brings no token of the target's and does not end within")
        token_ids = draft.token_ids[: verdict.accepted] + own
        start = draft.position + len(draft.confirmed_token_ids)
        new = self._beyond(start, token_ids, verdict)
        position = len(self._history) + len(new)
        if verdict.position != position or (not self.runs_ahead and len(new) < len(token_ids)):
            raise _broken(verdict, f"the session holds {position} tokens")
        self._in_flight.popleft()
        self._held = position
        # Where the target runs ahead, a rejection may be long known.
        rejected = not self.runs_ahead and verdict.accepted < len(draft.token_ids)
        wasted = self._take(new, verdict.finish_reason, rejected=rejected)
        return Round(new, len(draft.token_ids), verdict.accepted, verdict.finish_reason, wasted)

    def _take(
        self, token_ids: tuple[int, ...], reason: FinishReason | None, *, rejected: bool = False
    ) -> int:
        """Takes confirmed tokens; the guesses move on or are wasted, and it returns how many."""
        self._history += token_ids
        self._finished = reason is not None
        pairs = zip(self._ahead, token_ids, strict=False)
        right = sum(takewhile(bool, (guess == token for guess, token in pairs)))
        wrong = right < min(len(self._ahead), len(token_ids))
        del self._ahead[:right], self._origins[:right]
        if rejected or wrong or self._finished:
            return self._overtake(is_new=rejected and not self._finished)
        self._sent = max(0, self._sent - right)
        return 0

    def _overtake(self, *, is_new: bool = False) -> int:
        """Drops all guesses; a new epoch begins where one was rejected or any is in flight."""
        wasted = len(self._ahead)
        self._forget()
        if is_new or self.num_standing:
            self._epoch += 1
        return wasted

    def _forget(self) -> None:
        self._ahead.clear()
        self._origins.clear()
        self._sent = 0

    def _expect(self, allowed: bool, event: str) -> None:
        if not allowed:
            raise InternalError(
                f"{event}, but the session "
                f"{'is finished' if self._finished else f'has {self.num_in_flight} in flight'}"
            )


def _end(draft: Draft) -> int:
    """Returns where the bonus token stands if all of a draft is accepted."""
    return draft.position + len(draft.confirmed_token_ids) + len(draft.token_ids)


def _broken(said: Verdict | AheadTokens, expected: str) -> InternalError:
    return InternalError(f"the server broke the protocol: {expected}, and it sent {said}")
