"""The simplest client that gets its text through a bad link: it begins again from the start."""

from __future__ import annotations

import queue
import time
from typing import Any

import grpc

from common import wire
from common.types import GenerateMode, OpenSession
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub

ATTEMPT_S = 3.0
PAUSE_S = 0.05
MODES = {"cloud": GenerateMode.STOCK, "cloud_optimized": GenerateMode.OPTIMIZED}


def generate(address: str, arm: str, opening: OpenSession, deadline_s: float) -> list[int]:
    """Tries until it has the whole text; raises TimeoutError when its time is over."""
    end = time.monotonic() + deadline_s
    last: Exception | None = None
    while (left_s := end - time.monotonic()) > 0:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(address, options) as channel:
            try:
                return _attempt(VerifierStub(channel), arm, opening, min(ATTEMPT_S, left_s))
            except grpc.RpcError as error:
                last = error
        time.sleep(PAUSE_S)
    raise TimeoutError(f"no text within {deadline_s} s") from last


def _attempt(stub: VerifierStub, arm: str, opening: OpenSession, timeout_s: float) -> list[int]:
    if arm in MODES:
        pieces = stub.Generate(wire.generate_to_proto(MODES[arm], opening), timeout=timeout_s)
        return [token for piece in pieces for token in piece.token_ids]
    return _speculate(stub, opening, timeout_s)


def _speculate(stub: VerifierStub, opening: OpenSession, timeout_s: float) -> list[int]:
    """Guesses that the last token comes again."""
    requests: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
    call: Any = stub.Session(iter(requests.get, None), timeout=timeout_s)
    requests.put(pb.SessionRequest(open=wire.open_to_proto(opening)))
    tokens: list[int] = []
    try:
        next(call)
        finished = False
        while not finished:
            prompt = opening.prompt_token_ids
            guesses = [[*prompt, *tokens][-1]] * 2
            position = len(prompt) + len(tokens)
            request = pb.VerifyRequest(
                step_id=len(tokens) + 1, position=position, draft_token_ids=guesses
            )
            requests.put(pb.SessionRequest(verify=request))
            verdict = next(call).verdict
            tokens += guesses[: verdict.accepted_count]
            if verdict.HasField("next_token_id"):
                tokens.append(verdict.next_token_id)
            finished = verdict.finish_reason != pb.FINISH_REASON_UNSPECIFIED
    finally:
        requests.put(None)
        call.cancel()
    return tokens
