"""What the server knows of one session: values in, values out; no model, no network.

A session is a token history and a place in it. Everything the client may ask
is decided here: what must run, what was answered before, what is out of date.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from cloud_server.acceptance import Check, Judged, needs_distributions
from common.errors import InternalError, InvalidRequestError, PromptError
from common.stopping import Stopper
from common.types import Draft, DraftDistribution, OpenSession, Outcome, Verdict

REMEMBERED_VERDICTS = 64


class TargetSession:
    """Holds one generation: its history, its epoch, its stop rule and its earlier verdicts."""

    def __init__(
        self,
        opening: OpenSession,
        *,
        context_length: int,
        model_eos: Sequence[int],
        detokenizer: Callable[[], Callable[[int], str]],
    ) -> None:
        """Opens a session; raises PromptError when its tokens leave the context no room."""
        self.verification = opening.verification
        self.sampling = opening.sampling
        self.runs_ahead = opening.run_ahead > 0
        self.epoch = 0
        self._stop = opening.stop
        self._model_eos = model_eos
        self._detokenizer = detokenizer
        self.prompt_length = len(opening.prompt_token_ids)
        self._room = context_length - self.prompt_length
        if self._room < 1:
            raise PromptError(
                f"the prompt has {self.prompt_length} tokens and this model's context is "
                f"{context_length}, which leaves no room for an answer; shorten the prompt"
            )
        self.history = list(opening.prompt_token_ids)
        self.stopper = self._new_stopper()
        self._append(opening.generated_token_ids, "generated_token_ids")
        self._valid = self.position
        self._verdicts: OrderedDict[int, Verdict] = OrderedDict()

    @property
    def position(self) -> int:
        """How many tokens the session holds, prompt included."""
        return len(self.history)

    @property
    def cached(self) -> list[int]:
        """The tokens that the cache begins with, if all that was asked has run."""
        return self.history[: self._valid]

    @property
    def capacity(self) -> int:
        """How many tokens the session can ever hold in the cache."""
        return self.prompt_length + min(self._room, self._stop.max_new_tokens)

    @property
    def _needs_distributions(self) -> bool:
        return needs_distributions(self.verification, self.sampling)

    @property
    def finished(self) -> bool:
        """Whether the generation is over."""
        return self.stopper.finish_reason is not None

    def admit(self, draft: Draft) -> Check | Verdict:
        """Takes a verify request: returns what must run, or the verdict that needs no run.

        Rolls back to `draft.position` and takes the confirmed tokens; a session that runs
        ahead compares instead, see `_compare`. Raises InvalidRequestError, changing nothing,
        for a position inside the prompt, for guesses without the distributions their rule
        needs or with some it does not, and for a session that is over.
        """
        if (earlier := self.earlier(draft.step_id)) is not None:
            return earlier
        if draft.epoch < self.epoch:
            return Verdict(draft.step_id, draft.epoch, Outcome.STALE, self.position)
        needed = len(draft.token_ids) if self._needs_distributions else 0
        if len(draft.distributions) != needed:
            raise InvalidRequestError(
                f"{len(draft.distributions)} guesses name their candidates; "
                f"verification by {self.verification.mode.value} needs {needed}"
            )
        if draft.position < self.prompt_length:
            raise InvalidRequestError(
                f"position is {draft.position}, inside the prompt of {self.prompt_length} tokens"
            )
        if self.runs_ahead:
            return self._compare(draft)
        if draft.assumed_bonus_token_id is not None and not self._continues(draft):
            return Verdict(draft.step_id, draft.epoch, Outcome.STALE, self.position)
        reason = self.stopper.finish_reason
        if reason is not None and draft.position == self.position:
            raise InvalidRequestError(
                f"the generation ended ({reason.value}); open another session"
            )
        self.epoch = draft.epoch
        if draft.position > self.position:
            return Verdict(draft.step_id, draft.epoch, Outcome.MISMATCH, self.position)
        self._roll_back(draft.position)
        self._append(draft.confirmed_token_ids, "confirmed_token_ids")
        return self._check(draft.token_ids, draft.distributions)

    def _compare(self, draft: Draft) -> Check | Verdict:
        """Compares a request with what the session holds, which is the target's own throughout.

        Nothing is rolled back: whatever the request says of what is held is answered by it, and
        only guesses beyond it are run.
        """
        stale = Verdict(draft.step_id, draft.epoch, Outcome.STALE, self.position)
        if self.finished or not self._allows(draft):
            return stale
        self.epoch = draft.epoch
        if draft.position > self.position:
            return replace(stale, outcome=Outcome.MISMATCH)
        held, confirmed = self.history[draft.position :], draft.confirmed_token_ids
        if _agreeing(held, confirmed) < min(len(held), len(confirmed)):
            raise InvalidRequestError(
                f"confirmed_token_ids from {draft.position} on are {list(confirmed)}, and the "
                f"target wrote {held}; a session that runs ahead rolls nothing back"
            )
        self._append(confirmed[len(held) :], "confirmed_token_ids")
        held = held[len(confirmed) :]
        accepted = _agreeing(held, draft.token_ids)
        if accepted < len(held):
            return replace(
                stale, outcome=Outcome.VERIFIED, accepted=accepted, next_token_id=held[accepted]
            )
        return self._check(draft.token_ids[accepted:])

    def settle(self, draft: Draft, check: Check, judged: Judged) -> Verdict:
        """Turns the target's judgement into the verdict, and the history forward."""
        accepted = judged.accepted
        settled = len(check.context) - draft.position - len(draft.confirmed_token_ids)
        if len(check.context) != self.position or accepted > len(check.guesses):
            raise InternalError("a verdict was settled against another history")
        self._valid = self.position + accepted
        kept = self.stopper.push([*check.guesses[:accepted], judged.next_token_id]).token_ids
        self.history.extend(kept)
        verdict = Verdict(
            step_id=draft.step_id,
            epoch=draft.epoch,
            outcome=Outcome.VERIFIED,
            position=self.position,
            accepted=settled + min(accepted, len(kept)),
            next_token_id=judged.next_token_id if len(kept) > accepted else None,
            finish_reason=self.stopper.finish_reason,
        )
        return verdict

    def earlier(self, step_id: int) -> Verdict | None:
        """Returns the verdict that was given on this step, None where none is remembered."""
        return self._verdicts.get(step_id)

    def remember(self, verdict: Verdict) -> None:
        """Keeps a verdict as it was sent, to be sent again when its step_id is repeated."""
        self._verdicts[verdict.step_id] = verdict
        if len(self._verdicts) > REMEMBERED_VERDICTS:
            self._verdicts.popitem(last=False)

    def _check(
        self, guesses: tuple[int, ...], distributions: tuple[DraftDistribution, ...] = ()
    ) -> Check:
        room = self.stopper.remaining
        return Check(
            context=tuple(self.history),
            guesses=guesses[:room],
            valid=self._valid,
            prompt_length=self.prompt_length,
            sampling=self.sampling,
            verification=self.verification,
            distributions=distributions[:room],
        )

    def _allows(self, draft: Draft) -> bool:
        """Whether nothing that is held speaks against the bonus token a draft assumes."""
        if draft.assumed_bonus_token_id is None:
            return True
        before = self.history[draft.position - 1 : draft.position]
        return before == [draft.assumed_bonus_token_id]

    def _continues(self, draft: Draft) -> bool:
        """Whether all came out as a draft that was sent ahead assumes."""
        is_next = draft.position == self.position and not self.finished
        return is_next and self.history[-1] == draft.assumed_bonus_token_id

    def _new_stopper(self) -> Stopper:
        return Stopper(
            self._stop,
            model_eos=self._model_eos,
            room=self._room,
            detokenize=self._detokenizer() if self._stop.stop_strings else None,
        )

    def _roll_back(self, position: int) -> None:
        if position == self.position:
            return
        del self.history[position:]
        self._valid = min(self._valid, position)
        self.stopper = self._new_stopper()
        self.stopper.push(self.history[self.prompt_length :])

    def _append(self, token_ids: Sequence[int], field: str) -> None:
        kept = self.stopper.push(token_ids).token_ids
        if self.stopper.finish_reason is not None and token_ids:
            raise InvalidRequestError(
                f"{field} already end the generation ({self.stopper.finish_reason.value}) "
                f"at the {len(kept)}-th of {len(token_ids)} tokens; there is nothing to verify"
            )
        self.history.extend(kept)


def _agreeing(held: Sequence[int], told: Sequence[int]) -> int:
    """Returns for how many tokens two sequences agree."""
    together = zip(held, told, strict=False)
    return next((i for i, (a, b) in enumerate(together) if a != b), min(len(held), len(told)))
