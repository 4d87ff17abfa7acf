"""Runs the generations of a bench one after the other and turns each into a record."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.errors import InternalError, OutriderError
from common.machine.limits import is_out_of_memory
from common.types import SamplingParams, StopParams
from edge_client.arms import Arm, GenerationRequest
from edge_client.experiments.again import kind_of
from edge_client.experiments.columns import StepColumns, columns
from edge_client.experiments.figures import ASSISTED
from edge_client.experiments.ordering import balanced_orders
from edge_client.experiments.prompts import Prompt, PromptEncoder
from edge_client.experiments.quality import Quality, QualityMetrics
from edge_client.experiments.records import Record, Unit, error_record, record_from_steps
from edge_client.experiments.resources import Meter, ReadUsage
from edge_client.rule import Rule
from edge_client.steps import Step

NOT_RUN = "NOT_RUN"  # the reason of a turn that could not be asked, for one before it had failed
OUT_OF_MEMORY = "OUT_OF_MEMORY"  # the reason of the generation that ended its arm
_BEYOND = "the edge may not use so much; raise limits.edge.memory_gb, or ask for less"

Place = tuple[str, int, str, int]
"""Where a record belongs: prompt, turn, arm, repeat."""

_WITHOUT_DRAFT = frozenset({"cloud", "cloud_optimized"})
_WITHOUT_TARGET = frozenset({"edge"})
STOCK = "stock"
"""How the target runs in the arm `cloud`: transformers' own `generate`, whatever else may be."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Is everything that the generations of one run share.

    `rules` has the rule of each arm that verifies; `metrics` None leaves texts
    uncompared with their references; `usage` reads what both processes have used;
    `server_draft_engine` is how the draft model beside the target runs, in the target's precision;
    `ended` says of arms that ended an earlier process why, and they are not run;
    `clock` returns nanoseconds of one monotonic clock.
    """

    run_id: str
    arms: Mapping[str, Arm]
    prompts: tuple[Prompt, ...]
    encoder: PromptEncoder
    sampling: SamplingParams
    stop: StopParams
    repeats: int
    draft_dtype: str | None
    target_dtype: str | None
    clock: Callable[[], int]
    draft_engine: str | None = None
    target_engine: str | None = None
    server_draft_engine: str | None = None
    rules: Mapping[str, Rule] = field(default_factory=dict)
    metrics: QualityMetrics | None = None
    usage: ReadUsage | None = None
    ended: Mapping[str, str] = field(default_factory=dict)

    @property
    def planned_records(self) -> int:
        """How many records a whole run has."""
        return sum(len(prompt.turns) for prompt in self.prompts) * len(self.arms) * self.repeats

    def warm_up(self, note: Callable[[StepColumns], None]) -> None:
        """Runs the first prompt once through every arm and forgets it but for what `note` keeps.

        Raises what the arm raises.
        """
        for arm in (arm for name, arm in self.arms.items() if name not in self.ended):
            steps = list(arm.run(self._request(self.prompts[0].encode(self.encoder))))
            note(columns(steps, [0] * len(steps)))

    def records(
        self, announce: Callable[[str], None], done: Mapping[Place, Record] | None = None
    ) -> Iterator[Record]:
        """Yields a record for each generation, the arms of a prompt in balanced order.

        `announce` hears what is about to run; what is `done` already is not run again.
        """
        done = done or {}
        began = self.clock() - _elapsed_ns(done.values())
        meter = Meter(self.usage)
        untold = {arm: f"{OUT_OF_MEMORY}: {why}" for arm, why in self.ended.items()}
        ended = set(self.ended)
        names = list(self.arms)
        orders = balanced_orders(len(names), self.sampling.seed)
        order = 0
        for repeat in range(self.repeats):
            for prompt in self.prompts:
                for index in next(orders):
                    arm = names[index]
                    turns = [(prompt.prompt_id, turn, arm, repeat) for turn in turns_of(prompt)]
                    known = [done[turn] for turn in turns if turn in done]
                    if len(known) < len(turns):
                        announce(f"{arm} {prompt.prompt_id}")
                        meter.start()
                        gone = f"{NOT_RUN}: the arm {arm} ran out of memory before"
                        gone = untold.pop(arm, gone)
                        over = gone if arm in ended else None
                        for record in self.conversation(
                            prompt, arm, repeat, order, began, known, over
                        ):
                            if (record.error or "").startswith(f"{OUT_OF_MEMORY}:"):
                                ended.add(arm)
                            yield replace(record, **({} if record.error else meter.used()))
                    order += len(turns)

    def conversation(
        self,
        prompt: Prompt,
        arm: str,
        repeat: int,
        order: int,
        began: int,
        known: Sequence[Record] = (),
        over: str | None = None,
        arrived: int | None = None,
    ) -> Iterator[Record]:
        """Yields a record a turn, those after the `known`; none can be asked after a failed one.

        Nor any of an arm that is `over`, for that reason. `began` is when the run began, on the
        clock; the first turn's clock starts at `arrived`, where it was due before that.
        """
        answers = [record.text or "" for record in known]
        name = secrets.token_bytes(16) if len(prompt.turns) > 1 else b""
        for turn in turns_of(prompt)[len(known) :]:
            unit = self._unit(prompt, arm, turn, repeat, order + turn)
            if over is not None:
                yield error_record(unit, None, over)
                continue
            if len(answers) < turn:
                yield error_record(unit, None, f"{NOT_RUN}: turn {len(answers)} failed")
                continue
            continues = turn > len(known)
            record = self._generate(
                unit, prompt, answers, began, None if turn else arrived, name, continues
            )
            if record.text is not None:
                answers.append(record.text)
            yield record

    def _generate(
        self,
        unit: Unit,
        prompt: Prompt,
        answers: list[str],
        began: int,
        arrived: int | None,
        conversation: bytes,
        continues: bool,
    ) -> Record:
        token_ids = None
        try:
            token_ids = prompt.encode(self.encoder, answers)
            steps: list[Step] = []
            arrivals: list[int] = []
            request = replace(
                self._request(token_ids), conversation=conversation, continues=continues
            )
            now = self.clock()
            started = now if arrived is None else arrived
            for step in self.arms[unit.arm].run(request):
                arrivals.append(self.clock() - started)
                steps.append(step)
            if not steps or steps[-1].finish_reason is None:
                raise InternalError("the arm's output ended without a finish reason")
        except OutriderError as error:
            reason = OUT_OF_MEMORY if "ran out of memory" in str(error) else error.reason
            return error_record(unit, token_ids, f"{reason}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return error_record(unit, token_ids, f"{OUT_OF_MEMORY}: {_BEYOND} ({error})")
        return record_from_steps(
            unit,
            token_ids,
            steps,
            arrivals,
            self._quality(prompt, unit, steps),
            started_ns=started,
            run_started_ns=began,
            waited_ns=None if arrived is None else now - arrived,
        )

    def _quality(self, prompt: Prompt, unit: Unit, steps: Sequence[Step]) -> Quality | None:
        references = prompt.references_of(unit.turn)
        if self.metrics is None or not references:
            return None
        return self.metrics.against("".join(step.text for step in steps), references)

    def _request(self, token_ids: tuple[int, ...]) -> GenerationRequest:
        return GenerationRequest(token_ids, self.sampling, self.stop)

    def _unit(self, prompt: Prompt, arm: str, turn: int, repeat: int, order: int) -> Unit:
        kind = kind_of(arm)
        return Unit(
            run_id=self.run_id,
            prompt_id=prompt.prompt_id,
            turn=turn,
            category=prompt.category,
            arm=arm,
            repeat=repeat,
            order=order,
            seed=self.sampling.seed,
            temperature=self.sampling.temperature,
            draft_dtype=_of_draft(kind, self.draft_dtype, self.target_dtype),
            target_dtype=None if kind in _WITHOUT_TARGET else self.target_dtype,
            draft_engine=_of_draft(kind, self.draft_engine, self.server_draft_engine),
            target_engine=self._target_engine(kind),
            verification=self.rules.get(kind),
        )

    def _target_engine(self, kind: str) -> str | None:
        if kind in _WITHOUT_TARGET:
            return None
        return STOCK if kind == "cloud" else self.target_engine


def _of_draft(kind: str, edge: str | None, server: str | None) -> str | None:
    """Returns what holds of the draft model that an arm uses, which is one end's or the other's."""
    if kind in _WITHOUT_DRAFT:
        return None
    return server if kind == ASSISTED else edge


def place_of(record: Record) -> Place:
    """Returns where a record belongs in its run."""
    return record.prompt_id, record.turn, record.arm, record.repeat


def turns_of(prompt: Prompt) -> range:
    """Returns the turns of a prompt, from 0."""
    return range(len(prompt.turns))


def whole(records: Iterable[Record]) -> dict[Place, Record]:
    """Returns what need not be run again: each conversation up to its first failure or gap."""
    found = {place_of(record): record for record in records if record.error is None}

    def follows(place: Place) -> bool:
        prompt_id, turn, arm, repeat = place
        return all((prompt_id, before, arm, repeat) in found for before in range(turn))

    kept = {place: record for place, record in found.items() if follows(place)}
    return dict(sorted(kept.items(), key=lambda item: item[1].order))


def _elapsed_ns(done: Iterable[Record]) -> int:
    """Returns how long the run had gone on when the last of these ended."""
    return round(1e9 * max(((r.started_s or 0) + (r.e2e_s or 0) for r in done), default=0))
