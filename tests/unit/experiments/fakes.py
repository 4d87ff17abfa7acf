"""Arms, clocks and encoders that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from common.types import FinishReason, StepTiming
from edge_client.arms import GenerationRequest
from edge_client.experiments.prompts import Message
from edge_client.experiments.records import Unit
from edge_client.rule import Rule
from edge_client.steps import Step

MS = 1_000_000


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def advance_ms(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * MS)


class FakeEncoder:
    """Makes a token of every word."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(len(word) for word in text.split())

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode(" ".join(message["content"] for message in messages))

    def encode_turns(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode_chat(messages)


def piece(*token_ids: int, end: FinishReason | None = None) -> Step:
    """Returns a step of the arm `edge`."""
    return Step(token_ids, "".join(f"<{t}>" for t in token_ids), end)


def streamed(*token_ids: int, end: FinishReason | None = None, elapsed_ms: float = 10) -> Step:
    """Returns a step of a cloud arm: one forward of 6 ms after 1 ms in the queue."""
    return Step(
        token_ids,
        "".join(f"<{t}>" for t in token_ids),
        end,
        elapsed_ns=round(elapsed_ms * MS),
        timing=TIMING,
        bytes_up=5,
        bytes_down=20,
    )


def verified(
    *token_ids: int,
    drafted: int,
    accepted: int,
    end: FinishReason | None = None,
    elapsed_ms: float = 10,
    draft_ms: float = 4,
    probabilities: int | None = None,
) -> Step:
    """Returns a round of the arm `speculative`."""
    return Step(
        token_ids,
        "".join(f"<{t}>" for t in token_ids),
        end,
        elapsed_ns=round(elapsed_ms * MS),
        draft_ns=round(draft_ms * MS),
        num_draft_tokens=drafted,
        num_accepted_tokens=accepted,
        timing=TIMING,
        bytes_up=30,
        bytes_down=40,
        asked=True,
        draft_probabilities_bytes=probabilities,
        ahead=False,
        overtaken=False,
        num_guessed_tokens=drafted,
        num_wasted_tokens=drafted - accepted,
        serialization_ns=MS // 10,
    )


def overtaken(*, guessed: int, draft_ms: float = 4) -> Step:
    """Returns a draft that was sent ahead and dropped unseen."""
    return Step(
        (),
        "",
        None,
        draft_ns=round(draft_ms * MS),
        bytes_up=30,
        bytes_down=10,
        asked=True,
        ahead=True,
        overtaken=True,
        num_guessed_tokens=guessed,
        num_wasted_tokens=0,
        serialization_ns=MS // 10,
    )


def committed(
    *token_ids: int, drafted: int = 0, end: FinishReason | None = None, draft_ms: float = 4
) -> Step:
    """Returns a block that the gate let pass without asking."""
    return Step(
        token_ids,
        "".join(f"<{t}>" for t in token_ids),
        end,
        draft_ns=round(draft_ms * MS),
        num_draft_tokens=drafted or len(token_ids),
        asked=False,
    )


TIMING = StepTiming(
    queued_ns=1 * MS,
    batched_ns=MS // 2,
    computed_ns=6 * MS,
    total_ns=8 * MS,
    busy_ns=3 * MS,
    step_sessions=2,
    step_tokens=10,
    forward_passes=1,
)

Script = Callable[[GenerationRequest], Sequence[tuple[float, Step]]]


@dataclass
class FakeArm:
    """Plays a script: how many milliseconds pass before each step, and the step."""

    name: str
    clock: FakeClock
    script: Script
    requests: list[GenerationRequest] = field(default_factory=list)
    log: list[str] | None = None

    def run(self, request: GenerationRequest) -> Iterator[Step]:
        self.requests.append(request)
        if self.log is not None:
            self.log.append(self.name)
        for milliseconds, step in self.script(request):
            self.clock.advance_ms(milliseconds)
            yield step


def unit(arm: str = "speculative", prompt_id: str = "p", **changes: object) -> Unit:
    values: dict[str, object] = {
        "run_id": "run",
        "prompt_id": prompt_id,
        "turn": 0,
        "category": None,
        "arm": arm,
        "repeat": 0,
        "order": 0,
        "seed": 7,
        "temperature": 0.0,
        "draft_dtype": "float32",
        "target_dtype": "float32",
        "verification": Rule() if arm == "speculative" else None,
    }
    return Unit(**(values | changes))  # type: ignore[arg-type]
