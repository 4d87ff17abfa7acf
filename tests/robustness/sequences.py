"""What abusive clients send: sequences of messages over every method, mostly valid at first."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import Message
from hypothesis import strategies as st

from common import wire
from outrider.v1 import verifier_pb2 as pb
from tests.models import VOCAB_SIZE
from tests.robustness.absurd_openings import BEYOND, SPOILS
from tests.robustness.damage import NEGATIVE_POSITION, Damage, damages
from tests.robustness.known import CONTEXT, Known
from tests.robustness.verifies import Place, candidates, draw_verify


class Manner(Enum):
    """How a client behaves; what is open is left for a while and cancelled in the end."""

    IN_STEP = "in step"  # each message waits for the answer to the one before
    AHEAD = "ahead"  # all messages at once, then all answers
    SLOW_WRITER = "slow writer"  # a pause before each message
    SLOW_READER = "slow reader"  # all messages at once, no answer read, left open
    HALF_OPEN = "half-open stream"  # in step, and then neither closed nor used
    CANCEL = "cancelled"  # after the first answer
    DEADLINE = "short deadline"


@dataclass(frozen=True)
class Step:
    """Is one message and how its bytes are spoiled, if they are."""

    message: Message
    damage: Damage | None = None

    def data(self) -> bytes:
        plain = self.message.SerializeToString()
        return self.damage.apply(plain) if self.damage else plain


@dataclass(frozen=True)
class Sequence:
    """Is what one client sends to one method, how, and what there is to say about it."""

    method: str
    steps: tuple[Step, ...]
    manner: Manner
    labels: frozenset[str]


FLOOD = "flood of opens"
FLOOD_STREAMS = 40
PREFIXES = (0, 0, 0, 1, 2, 5, 20, 100)
NEAR_THE_END = (CONTEXT - 9, CONTEXT - 2, CONTEXT - 1)
"""Tokens a session holds when opened so that its context ends within a draft or two."""


def token_placeholder(number: int) -> bytes:
    """Stands in a VerifyBatchEntry for the number-th session token received."""
    return b"@%d" % number


def _one_in(draw: st.DrawFn, share: int) -> bool:
    return draw(st.integers(1, share)) == share


def _opening(
    draw: st.DrawFn, texts: Several[Known], labels: set[str]
) -> tuple[pb.OpenSession, Place]:
    known = draw(st.sampled_from(texts))
    opening = wire.open_to_proto(known.opening)
    prompt = known.prompt_length
    start = draw(st.sampled_from(NEAR_THE_END if _one_in(draw, 8) else PREFIXES))
    start = max(start, prompt) if start in NEAR_THE_END else prompt + start
    start = min(start, CONTEXT - 1)
    opening.generated_token_ids.extend(known.sequence[prompt:start])
    if not _one_in(draw, 20):  # else: may fill the context
        opening.stop.max_new_tokens = start - prompt + draw(st.integers(1, 30))
    if _one_in(draw, 4):
        spoil = draw(st.sampled_from(sorted(SPOILS)))
        labels.add(spoil)
        SPOILS[spoil](draw, opening)
    return opening, Place(known, start)


def _damaged(draw: st.DrawFn, message: Message, labels: set[str], share: int = 12) -> Step:
    if not _one_in(draw, share):
        return Step(message)
    labels.add("wrong bytes")
    return Step(message, draw(damages))


def _session(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    opening, place = _opening(draw, texts, labels)
    rejection = opening.verification.mode == pb.VERIFICATION_MODE_REJECTION
    steps = [_damaged(draw, pb.SessionRequest(open=opening), labels)]
    for _ in range(draw(st.integers(0, 7))):
        if rejection:
            kind, request = "candidates", candidates(draw, place)
        else:
            kind, request = draw_verify(draw, place)
        labels.add(kind)
        step = _damaged(draw, pb.SessionRequest(verify=request), labels, 25)
        if _one_in(draw, 25):
            labels.add("negative position")
            step = Step(step.message, NEGATIVE_POSITION)
        steps.append(step)
    if _one_in(draw, 10):
        labels.add("messages out of order")
        out_of_order = (pb.SessionRequest(), steps[0].message)
        steps.insert(draw(st.integers(0, len(steps))), Step(draw(st.sampled_from(out_of_order))))
    return steps


def _flood(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    opening, _ = _opening(draw, texts, labels)
    labels.add(FLOOD)
    return [Step(pb.SessionRequest(open=opening))] * FLOOD_STREAMS


def _generate(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    opening, _ = _opening(draw, texts, labels)
    mode = draw(st.sampled_from((2, 2, 2, 2, 1, 0, 7)))
    if mode == pb.GENERATE_MODE_STOCK:  # these run one after the other
        labels.add("stock generate")
        opening.stop.max_new_tokens = min(
            opening.stop.max_new_tokens, len(opening.generated_token_ids) + 6
        )
    return [_damaged(draw, pb.GenerateRequest(mode=mode, open=opening), labels)]  # type: ignore[arg-type]


def _verify_batch(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    places: list[Place] = []
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        entries = []
        for _ in range(draw(st.integers(0, 3))):
            entry = pb.VerifyBatchEntry(close=_one_in(draw, 4))
            if places and not _one_in(draw, 3):
                number = draw(st.integers(0, len(places) - 1))
                entry.session_token = token_placeholder(number)
                place = places[number]
            elif _one_in(draw, 10):
                labels.add("unknown session")
                entry.session_token = draw(st.sampled_from((b"", b"guessed", bytes(16))))
                place = Place(texts[0], texts[0].prompt_length)
            else:
                opening, place = _opening(draw, texts, labels)
                entry.open.CopyFrom(opening)
                places.append(place)
            if not _one_in(draw, 8):
                kind, request = draw_verify(draw, place)
                labels.add(kind)
                entry.verify.CopyFrom(request)
            entries.append(entry)
        steps.append(_damaged(draw, pb.VerifyBatchRequest(entries=entries), labels))
    return steps


def _score(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    known = draw(st.sampled_from(texts))
    request = pb.ScoreRequest(
        context_token_ids=known.sequence[: draw(st.sampled_from((0, 1, 5, 60, CONTEXT)))],
        token_ids=range(draw(st.sampled_from((0, 1, VOCAB_SIZE)))),
        text_token_ids=known.sequence[: draw(st.sampled_from((0, 1, 70, CONTEXT)))],
    )
    if _one_in(draw, 3):
        labels.add("token beyond the vocabulary")
        fields = (request.context_token_ids, request.token_ids, request.text_token_ids)
        draw(st.sampled_from(fields)).append(draw(st.sampled_from(BEYOND)))
    return [_damaged(draw, request, labels)]


def _echo(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    size = draw(st.sampled_from((0, 1, 1000, 1000, 100_000)))
    if _one_in(draw, 20):
        labels.add("larger than a message may be")
        size = 4 * 2**20
    return [_damaged(draw, pb.EchoRequest(payload=bytes(size)), labels)]


def _server_info(draw: st.DrawFn, texts: Several[Known], labels: set[str]) -> list[Step]:
    return [_damaged(draw, pb.GetServerInfoRequest(), labels, 2)]


_METHODS = {
    "Session": (_session, 100),
    "VerifyBatch": (_verify_batch, 40),
    "Generate": (_generate, 30),
    "Score": (_score, 12),
    "Echo": (_echo, 8),
    "GetServerInfo": (_server_info, 4),
    FLOOD: (_flood, 1),
}
_methods = st.sampled_from([name for name, (_, often) in _METHODS.items() for _ in range(often)])
_manners = st.sampled_from([Manner.IN_STEP] * 6 + [Manner.AHEAD] * 3 + list(Manner))


@st.composite
def sequences(draw: st.DrawFn, texts: Several[Known]) -> Sequence:
    """Draws what one client sends; `texts` are those of the server it will be played to."""
    method = draw(_methods)
    labels: set[str] = set()
    steps = _METHODS[method][0](draw, texts, labels)
    manner = Manner.IN_STEP if method == FLOOD else draw(_manners)
    labels.add(manner.value)
    if manner is Manner.HALF_OPEN and method == "Session" and _one_in(draw, 4):
        steps = []  # not even opened
    return Sequence(method, tuple(steps), manner, frozenset(labels))
