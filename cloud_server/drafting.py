"""A draft model beside the target: guesses for all sessions that wait for some, made together.

It follows the histories it is given as the edge's drafter does: what its cache and a history have
in common stays, the rest is rolled back, what is missing is read. So it cannot go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import compress, count
from operator import ne

from cloud_server.jobs import TOO_LATE, Clock, Failed, Job, StepReport, as_ours
from cloud_server.scheduler import Waiting, plan_step
from common.errors import DeadlineError, OutriderError
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context, choose
from common.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Guesses:
    """Is what was drafted for one session.

    `spent_ns` are the draft model's forwards it took part in, whole; `busy_ns` its own share of
    them, by tokens.
    """

    token_ids: tuple[int, ...]
    spent_ns: int
    busy_ns: int


@dataclass(slots=True, eq=False)
class Wanted:
    """Asks for at most `most` guesses that follow `history`, a prompt first.

    Fewer where the draft model's context ends, and none after one of `ends`: no output goes on
    there. `then` turns them into the job that has them checked; from `deadline_ns` on nothing
    more is drafted. Both callbacks are called on the engine thread.
    """

    session: int
    history: Sequence[int]
    most: int
    prompt_length: int
    sampling: SamplingParams
    ends: Collection[int]
    then: Callable[[Guesses], Job]
    failed: Failed
    deadline_ns: int | None = None
    tokens: list[int] = field(init=False)  # the history and what was guessed so far
    spent_ns: int = 0
    busy_ns: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.history)

    @property
    def guesses(self) -> tuple[int, ...]:
        """What was guessed so far."""
        return tuple(self.tokens[len(self.history) :])


class Drafting:
    """Drafts for many sessions in one ragged batch; belongs to the engine thread."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        token_budget: int,
        prefill_chunk: int,
        clock: Clock,
        on_forward: Callable[[StepReport], None],
    ) -> None:
        self.model = model
        self._token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._on_forward = on_forward
        self._waiting: list[Wanted] = []
        self._held: dict[int, list[int]] = {}  # of each session, the tokens its cache holds

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def cache_tokens_in_use(self) -> int:
        """Tokens whose keys and values have room reserved; may be a step old."""
        return self.model.cache.used_tokens

    def open(self, tokens: int) -> int:
        """Reserves cache for a session of at most so many tokens; raises OverloadedError."""
        session = self.model.cache.allocate(min(tokens, self.model.loaded.context_length))
        self._held[session] = []
        return session

    def close(self, session: int) -> None:
        """Drops what a session waits for, and frees its cache."""
        self._waiting = [wanted for wanted in self._waiting if wanted.session != session]
        del self._held[session]
        self.model.cache.free(session)
        if not self._waiting:
            self.model.cache.check_integrity()

    def take(self, wanted: Wanted) -> None:
        """Has guesses made in the next step, unless the session was closed: nobody waits then."""
        if wanted.session in self._held:
            self._waiting.append(wanted)

    def step(self) -> list[Job]:
        """Guesses for all that wait, a forward a guess, and returns the jobs that check them.

        A history that lacks more than a chunk is read on in the next step, so that one long
        prompt holds the others up for no longer than a chunk.
        """
        self._fail_expired()
        going = self._plan()
        while going:
            going = [
                (wanted, Segment(wanted.session, wanted.tokens[-1:], len(wanted.tokens) - 1, 1))
                for wanted in self._advance(going)
                if not self._is_whole(wanted)
            ]
        whole = [wanted for wanted in self._waiting if self._is_whole(wanted)]
        self._waiting = [wanted for wanted in self._waiting if wanted not in whole]
        return [job for wanted in whole if (job := _job(wanted)) is not None]

    def fail(self, error: OutriderError) -> None:
        """Ends all that wait."""
        self._fail(self._waiting, error)

    def _fail_expired(self) -> None:
        now = self._clock()
        expired = [wanted for wanted in self._waiting if (wanted.deadline_ns or now + 1) <= now]
        self._fail(expired, DeadlineError(TOO_LATE))

    def _fail(self, failed: Sequence[Wanted], error: OutriderError) -> None:
        self._waiting = [wanted for wanted in self._waiting if wanted not in failed]
        for wanted in failed:
            wanted.failed(error)

    def _is_whole(self, wanted: Wanted) -> bool:
        made = len(wanted.tokens) - len(wanted.history)
        ended = made > 0 and wanted.tokens[-1] in wanted.ends
        full = len(wanted.tokens) >= self.model.loaded.context_length
        return made >= wanted.most or ended or full

    def _plan(self) -> list[tuple[Wanted, Segment]]:
        """Returns what the first forward reads: of each history, what the cache lacks."""
        lacking = [wanted for wanted in self._waiting if not self._is_whole(wanted)]
        starts = [self._known(wanted) for wanted in lacking]
        waiting = [
            Waiting(wanted.session, len(wanted.tokens) - start, 1)
            for wanted, start in zip(lacking, starts, strict=True)
        ]
        planned = plan_step(waiting, self._token_budget, self._prefill_chunk)
        return [
            (
                lacking[one.index],
                Segment(
                    session=lacking[one.index].session,
                    token_ids=lacking[one.index].tokens[start : start + one.num_tokens],
                    position=start,
                    num_logits=int(one.is_last),
                ),
            )
            for one in planned
            for start in [starts[one.index]]
        ]

    def _known(self, wanted: Wanted) -> int:
        """Returns how much of a history need not be read; its last token is, for its logits."""
        held, tokens = self._held[wanted.session], wanted.tokens
        agreeing = next(compress(count(), map(ne, held, tokens)), min(len(held), len(tokens)))
        return min(agreeing, len(tokens) - 1)

    def _advance(self, going: Sequence[tuple[Wanted, Segment]]) -> list[Wanted]:
        """Runs one forward; returns those that have one guess more."""
        asked = [wanted for wanted, segment in going if segment.num_logits]
        started = self._clock()
        try:
            logits = self.model.forward([segment for _, segment in going])
            contexts = [Context(w.tokens, len(w.tokens), w.prompt_length) for w in asked]
            guesses = choose(logits, contexts, [w.sampling for w in asked]) if asked else []
        except Exception as error:  # whatever a model raises fails these, never the engine
            self._fail([wanted for wanted, _ in going], as_ours(error, "the draft model"))
            return []
        self._account(going, self._clock() - started)
        for wanted, guess in zip(asked, guesses, strict=True):
            wanted.tokens.append(guess)
        return asked

    def _account(self, going: Sequence[tuple[Wanted, Segment]], spent_ns: int) -> None:
        tokens = sum(len(segment.token_ids) for _, segment in going)
        for wanted, segment in going:
            wanted.spent_ns += spent_ns
            wanted.busy_ns += spent_ns * len(segment.token_ids) // tokens
            held = self._held[wanted.session]
            held[segment.position :] = segment.token_ids
        self._on_forward(StepReport(len(going), tokens, spent_ns))


def _job(wanted: Wanted) -> Job | None:
    try:
        return wanted.then(Guesses(wanted.guesses, wanted.spent_ns, wanted.busy_ns))
    except Exception as error:  # a fault in one session's bookkeeping ends that session
        wanted.failed(as_ours(error))
        return None
