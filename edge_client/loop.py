"""Speculative decoding as the paper has it: draft, verify, accept, yield."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import InternalError
from common.stopping import Kept, Stopper
from common.types import FinishReason, SamplingParams, StepTiming
from edge_client.draft_length import DraftLength
from edge_client.link import Clock, VerifyStream
from edge_client.policy import PLAIN, Drafted, DraftPolicy
from edge_client.session import ClientSession


@dataclass(frozen=True, slots=True)
class Step:
    """Is one arrival of output tokens: a round, a streamed piece, or one local decode step.

    A round that mends a mismatch brings no tokens. What does not apply to an arm is
    None: `elapsed_ns`, `reconnects`, `lost_ns` (see link.py), `timing` and the bytes for
    `edge`; the drafts and `asked` for all arms but `speculative`. A block that the gate
    let pass was not `asked` about: it is no round, and nobody accepted it. `text` is what
    these tokens made certain, not their own: a half character, or what may begin a stop
    string, waits.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    elapsed_ns: int | None = None
    draft_ns: int | None = None
    num_draft_tokens: int | None = None
    num_accepted_tokens: int | None = None
    timing: StepTiming | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    asked: bool | None = None
    draft_probabilities_bytes: int | None = None
    reconnects: int | None = None
    lost_ns: int | None = None


class DraftSource(Protocol):
    """Is the draft model to the loop."""

    def draft(
        self,
        history: Sequence[int],
        count: int,
        sampling: SamplingParams,
        *,
        prompt_length: int,
        ends: Collection[int] = (),
        policy: DraftPolicy = PLAIN,
    ) -> Drafted:
        """Guesses at most `count` tokens that follow `history`, a prompt first.

        None after one of `ends`.
        """
        ...


def speculate(
    session: ClientSession,
    drafter: DraftSource,
    stream: VerifyStream,
    stopper: Stopper,
    draft_length: DraftLength,
    policy: DraftPolicy,
    sampling: SamplingParams,
    clock: Clock,
) -> Iterator[Step]:
    """Yields text that the target confirmed, a round at a time.

    The stream is open already: the server takes the prompt in while the first draft is made.
    """
    while stopper.finish_reason is None:
        started = clock()
        drafted = drafter.draft(
            session.history,
            draft_length.next(stopper.remaining),
            sampling,
            prompt_length=session.prompt_length,
            ends=stopper.eos_token_ids,
            policy=policy,
        )
        draft_ns = clock() - started

        if drafted.sure:
            kept = stopper.push(drafted.token_ids)
            session.commit(kept.token_ids)
            # An answer nobody was asked about still needs a server that would have taken it.
            opened = None if kept.finish_reason is None else stream.opened()
            yield Step(
                token_ids=kept.token_ids,
                text=kept.text,
                finish_reason=kept.finish_reason,
                draft_ns=draft_ns,
                num_draft_tokens=len(drafted.token_ids),
                bytes_up=None if opened is None else opened.bytes_up,
                bytes_down=None if opened is None else opened.bytes_down,
                asked=False,
            )
            continue

        stream.send(session.next_draft(drafted.token_ids, drafted.distributions))
        answer = stream.receive()

        settled = session.apply(answer.verdict)
        kept = stopper.push(settled.token_ids)
        check_agreement(kept, settled.token_ids, settled.finish_reason)
        yield Step(
            token_ids=kept.token_ids,
            text=kept.text,
            finish_reason=kept.finish_reason,
            elapsed_ns=answer.elapsed_ns,
            draft_ns=draft_ns,
            num_draft_tokens=settled.num_draft_tokens,
            num_accepted_tokens=settled.num_accepted_tokens,
            timing=answer.verdict.timing,
            bytes_up=answer.bytes_up,
            bytes_down=answer.bytes_down,
            asked=True,
            draft_probabilities_bytes=answer.draft_probabilities_bytes,
            reconnects=answer.reconnects,
            lost_ns=answer.lost_ns,
        )


def check_agreement(kept: Kept, sent: tuple[int, ...], reason: FinishReason | None) -> None:
    """Raises InternalError unless both ends end the output with the same token and reason."""
    if (kept.token_ids, kept.finish_reason) != (sent, reason):
        raise InternalError(
            f"the two ends disagree where the output ends: of the server's {len(sent)} tokens "
            f"with finish reason {reason}, the client keeps {len(kept.token_ids)} "
            f"with {kept.finish_reason}"
        )
