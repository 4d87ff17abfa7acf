"""Both ends without a network: the server's own session rules behind the client's protocols."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cloud_server.acceptance import Check, Judged
from cloud_server.sessions import TargetSession
from common.types import (
    Draft,
    GeneratedTokens,
    GenerateMode,
    OpenSession,
    Peer,
    SamplingParams,
    ServerInfo,
    StepTiming,
    StopParams,
    Verdict,
)
from edge_client.link import Answer, Opened, Piece
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never
from tests.models import tiny_tokenizer

Target = Callable[[Sequence[int]], int]

PEER = Peer("1.0", "f" * 64, 300, "float32")
GREEDY = SamplingParams()
CONTEXT = 64
EOS = 0
TIMING = StepTiming(total_ns=5, step_sessions=2, forward_passes=1)


def target(tokens: Sequence[int]) -> int:
    """Is the target model: any pure function of the tokens before will do."""
    return EOS if len(tokens) == 40 else 256 + (3 * sum(tokens[-2:]) + len(tokens)) % 40


def judged(check: Check) -> Judged:
    """Judges by the coupled rule: guesses stand while they are what the target chooses."""
    accepted = 0
    while accepted < len(check.guesses):
        if target((*check.context, *check.guesses[:accepted])) != check.guesses[accepted]:
            break
        accepted += 1
    return Judged(accepted, target((*check.context, *check.guesses[:accepted])))


def undisturbed(prompt: Sequence[int], stop: StopParams) -> tuple[int, ...]:
    """Returns what the target alone writes, up to an EOS, max_new_tokens or the context's end."""
    eos = (EOS,) if stop.eos_token_ids is None else stop.eos_token_ids
    tokens = list(prompt)
    while len(tokens) < min(CONTEXT, len(prompt) + stop.max_new_tokens):
        tokens.append(target(tokens))
        if tokens[-1] in eos:
            break
    return tuple(tokens[len(prompt) :])


def server_info(**changes: object) -> ServerInfo:
    """Describes the server that `PairedCloud` is."""
    values: dict[str, object] = {
        "protocol_version": "1.0",
        "server_version": "0",
        "model_name": "target",
        "model_fingerprint": "0" * 64,
        "tokenizer_fingerprint": PEER.tokenizer_fingerprint,
        "vocab_size": 300,
        "dtype": "float32",
        "cache_dtype": "float32",
        "checkpoint_dtype": "float32",
        "device": "cpu",
        "context_length": CONTEXT,
        "eos_token_ids": (EOS,),
        "max_sessions": 1,
        "max_draft_tokens": 8,
        "token_budget": 64,
        "cache_tokens": 64,
        "max_message_bytes": 4096,
        "idle_session_seconds": 1.0,
        "precision": {},
        "environment": {},
        "draft_model_name": "draft",
    }
    return ServerInfo(**(values | changes))  # type: ignore[arg-type]


def text_of(token_ids: Sequence[int]) -> str:
    """Returns the text of tokens, by the tiny tokenizer."""
    return str(tiny_tokenizer().decode(list(token_ids)))


class Clock:
    """Moves on by one nanosecond each time it is read."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@dataclass
class PairedStream:
    """Answers drafts by the server's rules; `forget` makes the server lose what it held."""

    opening: OpenSession
    sent: list[Draft] = field(default_factory=list)
    tamper: Callable[[Verdict], Verdict] = lambda verdict: verdict
    is_here: Callable[[], bool] = lambda: False  # asked when somebody would rather draft than wait
    forwards: int = 0

    def __post_init__(self) -> None:
        self.session = self._open(())
        self._answers: deque[Verdict] = deque()

    def forget(self, generated: int) -> None:
        """Keeps only the first `generated` tokens after the prompt."""
        prompt = len(self.opening.prompt_token_ids)
        self.session = self._open(tuple(self.session.history[prompt : prompt + generated]))

    def send(self, draft: Draft) -> None:
        self.sent.append(draft)
        admitted = self.session.admit(draft)
        if not isinstance(admitted, Verdict):
            self.forwards += 1
            admitted = self.session.settle(draft, admitted, judged(admitted))
        self._answers.append(admitted)

    def opened(self) -> Opened:
        return Opened(3, 2)

    def arrived(self, within_s: float = 0.0) -> bool:
        return bool(self._answers) and self.is_here()

    def receive(self) -> Answer:
        return Answer(self.tamper(self._answers.popleft()), elapsed_ns=9, bytes_up=7, bytes_down=5)

    def _open(self, generated: tuple[int, ...]) -> TargetSession:
        return TargetSession(
            replace(self.opening, generated_token_ids=generated),
            context_length=CONTEXT,
            model_eos=(EOS,),
            detokenizer=lambda: lambda token_id: text_of([token_id]),
        )


@dataclass
class PairedCloud:
    """Is a server in this process."""

    pieces: Sequence[GeneratedTokens] = ()
    streams: list[PairedStream] = field(default_factory=list)
    openings: list[OpenSession] = field(default_factory=list)
    tamper: Callable[[Verdict], Verdict] = lambda verdict: verdict

    def info(self) -> ServerInfo:
        return server_info()

    @contextmanager
    def open(self, opening: OpenSession) -> Iterator[PairedStream]:
        self.openings.append(opening)
        self.streams.append(PairedStream(opening, tamper=self.tamper))
        yield self.streams[-1]

    def generate(self, mode: GenerateMode, opening: OpenSession) -> Iterator[Piece]:
        self.openings.append(opening)
        for piece in self.pieces:
            yield Piece(piece, elapsed_ns=9, bytes_up=7, bytes_down=5)


class ScriptedDrafter:
    """Guesses what the target would choose, and a wrong token at every `wrong`-th position.

    `sure` says of which blocks it is so sure that the gate would not ask.
    """

    context_length = CONTEXT
    eos_token_ids = (EOS,)

    def __init__(
        self,
        wrong: int | None = None,
        sure: Callable[[tuple[int, ...]], bool] = lambda guesses: False,
    ) -> None:
        self.wrong = wrong
        self.sure = sure
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def draft(
        self,
        history: Sequence[int],
        count: int,
        sampling: SamplingParams,
        *,
        prompt_length: int,
        ends: Collection[int] = (),
        policy: DraftPolicy = PLAIN,
        interrupted: Callable[[], bool] = never,
        behind: bool = False,
    ) -> Drafted:
        tokens = list(history)
        for made in range(min(count, self.context_length - len(history))):
            if made and interrupted():
                return Drafted(tuple(tokens[len(history) :]), interrupted=True)
            choice = target(tokens)
            miss = self.wrong is not None and len(tokens) % self.wrong == 0
            tokens.append(299 if miss else choice)
            if tokens[-1] in ends:
                break
        guesses = tuple(tokens[len(history) :])
        return Drafted(guesses, sure=bool(guesses) and self.sure(guesses))
