"""The edge's own client, as the chaos drives it: one text through a bad link."""

from __future__ import annotations

from common.config import NetworkSection
from common.types import GenerateMode, OpenSession
from edge_client.link import Answer
from edge_client.resume import ResilientCloud
from edge_client.session import ClientSession
from edge_client.transport import CloudConnection

ANSWER_S = 3.0
"""How long one answer may take before the client looks for another way."""
AHEAD = 2
MODES = {"cloud": GenerateMode.STOCK, "cloud_optimized": GenerateMode.OPTIMIZED}


def generate(address: str, arm: str, opening: OpenSession, deadline_s: float) -> list[int]:
    """Returns the output's tokens; raises what the client raises when its time is over."""
    network = NetworkSection(
        connect_timeout_s=ANSWER_S,
        round_timeout_s=ANSWER_S,
        reconnect_s=deadline_s,
        deadline_s=deadline_s,
    )

    def connect(to: str) -> CloudConnection:
        return CloudConnection(to, network, max_message_bytes=2**22)

    with ResilientCloud([address], connect, network) as cloud:
        if arm in MODES:
            pieces = cloud.generate(MODES[arm], opening)
            return [token for piece in pieces for token in piece.tokens.token_ids]
        return _speculate(cloud, opening)


def _speculate(cloud: ResilientCloud, opening: OpenSession) -> list[int]:
    """Guesses that the last token comes again, up to two drafts ahead of the verdicts."""
    session = ClientSession(opening.prompt_token_ids)
    with cloud.open(opening) as stream:
        while not session.finished:
            while session.num_standing <= AHEAD and not (
                session.num_in_flight and stream.arrived()
            ):
                session.guess(session.tokens[-1:] * 2)
                stream.send(session.next_draft())
            answer = stream.receive()
            assert isinstance(answer, Answer)
            session.apply(answer.verdict)
    return list(session.history[session.prompt_length :])
