"""Texts of the real draft model, kept draft by draft, so that a load can replay them: capacity.py.

Verdicts are a function of prompt, drafts and sampling alone. So whoever sends the same drafts again
gets the same verdicts, and needs no draft model for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tqdm import tqdm

from common.config import NetworkSection
from common.lm.execution import CompileMode
from common.types import (
    Draft,
    GenerateMode,
    OpenSession,
    SamplingParams,
    ServerInfo,
    StepTiming,
    StopParams,
    Verdict,
)
from edge_client.arms import Drafting, GenerationRequest, build_arms
from edge_client.draft_length import FixedPace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.experiments.prompts import read_prompts
from edge_client.link import Ahead, Answer, Cloud, Opened, Piece, VerifyStream
from edge_client.resume import ResilientCloud
from edge_client.text import TextEncoder
from edge_client.transport import CloudConnection

SAMPLING = SamplingParams()


@dataclass(frozen=True, slots=True)
class Round:
    """Is one draft as it was sent, and what was said of it, timings left out."""

    draft: Draft
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Text:
    """Is one text: how it was asked for, the rounds that made it, and what came out."""

    opening: OpenSession
    rounds: tuple[Round, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Holds texts, and what a guess took the draft model, in seconds: the median over rounds."""

    texts: tuple[Text, ...]
    draft_length: int
    guess_s: float


def without_timing(verdict: Verdict) -> Verdict:
    """Returns what a verdict says of the draft."""
    return replace(verdict, timing=StepTiming())


def record(
    address: str,
    draft: Path,
    prompts: Path,
    *,
    draft_length: int,
    tokens: int,
    limit: int | None,
    compile_mode: CompileMode,
) -> Recording:
    """Has the first `limit` prompts of a file answered greedily, `tokens` at most, and keeps it."""
    network = NetworkSection()
    with ResilientCloud(
        [address], lambda to: CloudConnection(to, network, 2**22), network
    ) as cloud:
        info, model = cloud.info(), EdgeModel(str(draft), threads=1, compile_mode=compile_mode)
        model.compile()
        spy = _Spy(cloud)
        arm = build_arms(
            ["speculative"],
            tokenizer=model.loaded.tokenizer,
            peer=model.peer,
            drafter=Drafter(model),
            cloud=spy,
            server=info,
            drafting=Drafting(FixedPace(draft_length, info.max_draft_tokens)),
        )["speculative"]
        encoder = TextEncoder(model.loaded.tokenizer)
        spent: list[float] = []
        for prompt in tqdm(read_prompts(prompts)[:limit], desc="recording"):
            asked = GenerationRequest(prompt.encode(encoder), SAMPLING, StopParams(tokens))
            # The first round reads the prompt: what it takes is no guess's.
            spent += [
                step.draft_ns / step.num_guessed_tokens / 1e9
                for step in list(arm.run(asked))[1:]
                if step.num_guessed_tokens and step.draft_ns
            ]
    return Recording(tuple(map(_text, spy.texts)), draft_length, median(spent))


def _text(kept: tuple[OpenSession, Sequence[Draft], Sequence[Verdict]]) -> Text:
    opening, drafts, verdicts = kept
    rounds = tuple(
        Round(draft, without_timing(verdict))
        for draft, verdict in zip(drafts, verdicts, strict=True)
    )
    written = [
        token
        for made in rounds
        for token in (
            *made.draft.token_ids[: made.verdict.accepted],
            *(() if made.verdict.next_token_id is None else (made.verdict.next_token_id,)),
        )
    ]
    return Text(opening, rounds, tuple(written))


class _Spy:
    """Is a cloud that keeps what passes on its sessions."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.texts: list[tuple[OpenSession, list[Draft], list[Verdict]]] = []

    def info(self) -> ServerInfo:
        return self._cloud.info()

    def generate(self, mode: GenerateMode, opening: OpenSession) -> Iterator[Piece]:
        return self._cloud.generate(mode, opening)

    @contextmanager
    def open(self, opening: OpenSession) -> Iterator[VerifyStream]:
        self.texts.append((opening, [], []))
        with self._cloud.open(opening) as stream:
            yield _SpiedStream(stream, *self.texts[-1][1:])


class _SpiedStream:
    def __init__(self, stream: VerifyStream, drafts: list[Draft], verdicts: list[Verdict]) -> None:
        self._stream = stream
        self._drafts = drafts
        self._verdicts = verdicts

    def opened(self) -> Opened:
        return self._stream.opened()

    def send(self, draft: Draft) -> None:
        self._drafts.append(draft)
        self._stream.send(draft)

    def arrived(self, within_s: float = 0.0) -> bool:
        return self._stream.arrived(within_s)

    def receive(self) -> Answer | Ahead:
        arrived = self._stream.receive()
        if isinstance(arrived, Answer):
            self._verdicts.append(arrived.verdict)
        return arrived
