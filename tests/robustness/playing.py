"""Plays sequences against a server, many side by side, and notes what became of each."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

from outrider.v1 import verifier_pb2 as pb
from tests.robustness.clients import EOF, OF_THE_LIBRARY
from tests.robustness.sequences import FLOOD, Manner, Sequence, Step, token_placeholder
from tests.robustness.tally import CROSSED, IN_ENTRY, Tally

NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
SERVICE = "/outrider.v1.Verifier/"
PATIENCE_S = 60.0
"""A call that is not done by then hangs."""
LEFT_OPEN = 40
"""Calls left open at once; the oldest is then cancelled."""
IN_FLIGHT = 64
"""Sequences still playing when more are begun."""
CONNECTIONS = 4

ENDED = (
    grpc.aio.AioRpcError,
    grpc.aio.InternalError,  # of the library: a half-close that crossed the end
    asyncio.InvalidStateError,
    asyncio.CancelledError,
)
"""What grpc.aio raises where a call is used that has ended, by whichever side."""

PAUSE_S = 0.02

Call = Any  # grpc.aio's calls have no common published type


class Player:
    """Is a handful of connections to one server, for use on one event loop."""

    def __init__(self, address: str, tally: Tally) -> None:
        self._tally = tally
        self._left_open: deque[Call] = deque()
        self._playing: set[asyncio.Future[None]] = set()
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
        ]
        self._channels: list[Any] = [
            grpc.aio.insecure_channel(address, options) for _ in range(CONNECTIONS)
        ]

    async def play(self, batch: list[Sequence]) -> None:
        """Begins to play all, once few enough others are in flight."""
        while len(self._playing) > IN_FLIGHT:
            await self._finish(asyncio.FIRST_COMPLETED)
        self._playing |= {asyncio.ensure_future(self._play(sequence)) for sequence in batch}

    async def close(self) -> None:
        """Plays to the end, and cancels what was left open."""
        await self._finish(asyncio.ALL_COMPLETED)
        while self._left_open:
            self._left_open.popleft().cancel()
        for channel in self._channels:
            await channel.close()

    async def _finish(self, when: str) -> None:
        if self._playing:
            done, self._playing = await asyncio.wait(self._playing, return_when=when)
            for one in done:
                one.result()  # a fault of the player itself

    async def _play(self, sequence: Sequence) -> None:
        tally = self._tally
        tally.sequences += 1
        tally.messages += len(sequence.steps)
        tally.labels.update(sequence.labels)
        channel = self._channels[tally.sequences % CONNECTIONS]
        if sequence.method == FLOOD:
            await asyncio.gather(
                *(self._stream(channel, sequence, (step,)) for step in sequence.steps)
            )
        elif sequence.method == "Session":
            await self._stream(channel, sequence, sequence.steps)
        else:
            await self._requests(channel, sequence)

    async def _stream(self, channel: Any, sequence: Sequence, steps: tuple[Step, ...]) -> None:
        call: Call = channel.stream_stream(f"{SERVICE}Session")(timeout=_timeout(sequence))
        manner = sequence.manner
        with suppress(*ENDED):  # the status says how
            if manner in (Manner.IN_STEP, Manner.HALF_OPEN, Manner.CANCEL):
                await self._in_step(call, steps, cancel=manner is Manner.CANCEL)
            elif manner is Manner.SLOW_READER:
                await _write(call, steps)
            else:
                pause_s = PAUSE_S if manner is Manner.SLOW_WRITER else 0.0
                reading = asyncio.ensure_future(self._answers(call))
                await _write(call, steps, pause_s)
                await call.done_writing()
                await reading
        if manner in (Manner.SLOW_READER, Manner.HALF_OPEN):
            await self._leave_open(call)
        else:
            await self._end(call, sequence)

    async def _in_step(self, call: Call, steps: tuple[Step, ...], cancel: bool) -> None:
        for number, step in enumerate(steps):
            await call.write(step.data())
            if cancel and number:
                call.cancel()
            if not await self._answer(call):
                return
        await call.done_writing()
        await self._answers(call)

    async def _answers(self, call: Call) -> None:
        with suppress(*ENDED):
            while await self._answer(call):
                pass

    async def _answer(self, call: Call) -> bool:
        """Reads one answer; False at the end of the stream."""
        data = await call.read()
        if data is EOF:
            return False
        response = pb.SessionResponse.FromString(data)
        if response.HasField("verdict"):
            self._tally.outcomes[pb.Outcome.Name(response.verdict.outcome)] += 1
        return True

    async def _requests(self, channel: Any, sequence: Sequence) -> None:
        """Plays a method that takes one request at a time."""
        path = SERVICE + sequence.method
        streams = sequence.method == "Generate"
        make = channel.unary_stream(path) if streams else channel.unary_unary(path)
        tokens: list[bytes] = []
        for step in sequence.steps:
            call: Call = make(_with_tokens(step, tokens).data(), timeout=_timeout(sequence))
            if sequence.manner in (Manner.SLOW_READER, Manner.HALF_OPEN):
                await self._leave_open(call)
                continue
            with suppress(*ENDED):
                if sequence.manner is Manner.CANCEL:
                    await asyncio.sleep(0)
                    if streams:
                        await call.read()
                    call.cancel()
                elif streams:
                    while await call.read() is not EOF:
                        pass
                else:
                    answer = await call
                    if isinstance(step.message, pb.VerifyBatchRequest):
                        self._entries(step.message, answer, sequence, tokens)
            await self._end(call, sequence)

    def _entries(
        self,
        request: pb.VerifyBatchRequest,
        answer: bytes,
        sequence: Sequence,
        tokens: list[bytes],
    ) -> None:
        """Counts the results of a batch, and notes the tokens of the sessions it opened."""
        results = pb.VerifyBatchResponse.FromString(answer).results
        for entry, result in zip(request.entries, results, strict=False):  # spoiled: other entries
            if entry.HasField("open"):
                tokens.append(result.session_token)
            if result.HasField("error"):
                name = IN_ENTRY + NAMES[result.error.code]
                self._tally.status(name, result.error.message, sequence)
            elif result.HasField("verdict"):
                self._tally.outcomes[pb.Outcome.Name(result.verdict.outcome)] += 1

    async def _end(self, call: Call, sequence: Sequence) -> None:
        name, details = (await call.code()).name, str(await call.details())
        if name == "INTERNAL" and details == OF_THE_LIBRARY:
            name = CROSSED
        if name == "DEADLINE_EXCEEDED" and sequence.manner is not Manner.DEADLINE:
            self._tally.faults.append(f"no end within {PATIENCE_S} s of {sequence}")
        self._tally.status(name, details, sequence)

    async def _leave_open(self, call: Call) -> None:
        self._tally.statuses["left open"] += 1
        self._left_open.append(call)
        if len(self._left_open) > LEFT_OPEN:
            self._left_open.popleft().cancel()


def _timeout(sequence: Sequence) -> float:
    return 0.02 if sequence.manner is Manner.DEADLINE else PATIENCE_S


def _with_tokens(step: Step, tokens: list[bytes]) -> Step:
    """Puts session tokens received before in place of their placeholders."""
    if not isinstance(step.message, pb.VerifyBatchRequest):
        return step
    known = {token_placeholder(number): token for number, token in enumerate(tokens)}
    request = pb.VerifyBatchRequest()
    request.CopyFrom(step.message)
    for entry in request.entries:
        if entry.session_token in known:
            entry.session_token = known[entry.session_token]
    return Step(request, step.damage)


async def _write(call: Call, steps: tuple[Step, ...], pause_s: float = 0.0) -> None:
    for step in steps:
        if pause_s:
            await asyncio.sleep(pause_s)
        await call.write(step.data())
