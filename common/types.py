"""The values both processes exchange, in the words of the glossary (docs/architecture.md).

A *position* is the index of a token in the whole sequence, prompt included,
starting at 0. All intervals are half-open.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class FinishReason(enum.Enum):
    """Says why a generation ended; the value is what records and JSON output show."""

    EOS = "eos"  # an end-of-sequence token was produced; it is the last output token
    STOP_STRING = "stop_string"  # a stop string was completed; that token is the last
    MAX_NEW_TOKENS = "max_new_tokens"  # as many tokens as were asked for
    CONTEXT_LENGTH = "context_length"  # prompt and output fill the model's context


class Outcome(enum.Enum):
    """Says what a server did with a verify request."""

    VERIFIED = "verified"  # the target checked the drafts
    STALE = "stale"  # older epoch, or assumed what is not so: dropped without touching the model
    MISMATCH = "mismatch"  # position beyond what the server holds: resend from Verdict.position


class GenerateMode(enum.Enum):
    """Says which of the cloud arms produces the text."""

    STOCK = "stock"  # Hugging Face generate: the `cloud` arm
    OPTIMIZED = "optimized"  # the verifier's own loop with zero drafts: `cloud_optimized`
    ASSISTED = "assisted"  # that loop with a draft model beside the target: `cloud_assisted`


class VerificationMode(enum.Enum):
    """Says by which rule a guess is accepted; see cloud_server/acceptance.py."""

    COUPLED = "coupled"  # it equals the target's own choice: the output is the target's own
    REJECTION = "rejection"  # with probability target / draft: exact in distribution
    RANK = "rank"  # LOSSY: among the target's `rank_threshold` likeliest
    TYPICAL = "typical"  # LOSSY: likely enough for how undecided the target is

    @property
    def lossless(self) -> bool:
        """Whether the output has the target's own distribution."""
        return self in (VerificationMode.COUPLED, VerificationMode.REJECTION)


LEAST_PENALTY = 0.01
"""Smaller factors are no penalty anybody means, and logits over them may overflow."""
COLDEST = 2.0**-20
"""Temperatures below this are greedy: so they are in effect, and logits over them may overflow."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """States how a token is chosen from logits; temperature 0 is greedy.

    In the order applied (Hugging Face's): the repetition penalty, over prompt and
    output; presence and frequency penalty, over the output; temperature; top-k,
    top-p, min-p. The defaults of all of these change nothing. `seed` keys the
    noise together with position and token id, so that equal seeds give equal text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is the likeliest token, without noise."""
        return self.temperature < COLDEST


@dataclass(frozen=True, slots=True)
class VerificationParams:
    """States the rule of a session; each number belongs to the mode in its name.

    `gated`: the client commits tokens that no target has judged.
    """

    mode: VerificationMode = VerificationMode.COUPLED
    rank_threshold: int = 20
    typical_threshold: float = 0.09
    typical_alpha: float = 0.3
    gated: bool = False

    @property
    def lossless(self) -> bool:
        """Whether the output has the target's own distribution."""
        return self.mode.lossless and not self.gated


EXACT = VerificationParams()
"""The rule when nothing else is said."""


@dataclass(frozen=True, slots=True)
class StopParams:
    """States when a generation ends; see common/stopping.py for the rule itself.

    `eos_token_ids` None means the target model's own; empty means never.
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Holds the server's clock for one request, in nanoseconds, and the batch it rode in.

    queued: from arrival until its first forward began to be formed;
    batched: forming that forward, and waiting between the forwards of a chunked request;
    computed: the forwards it took part in, whole (others' tokens included);
    total: arrival to answer, so that client elapsed - total is network time.
    busy: its own share of `computed`, by tokens; sums to the target's busy time.
    `step_sessions` and `step_tokens` describe the last forward of the request,
    `forward_passes` counts all of them, prefill included.
    """

    queued_ns: int = 0
    batched_ns: int = 0
    computed_ns: int = 0
    total_ns: int = 0
    busy_ns: int = 0
    step_sessions: int = 0
    step_tokens: int = 0
    forward_passes: int = 0


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """Is what one guess was drawn from: a candidate's probability is its weight over their sum.

    Weights are whole, from 1 to MAX_WEIGHT, so that both ends have the same
    distribution to the last bit.
    """

    token_ids: tuple[int, ...]
    weights: tuple[int, ...]


MAX_WEIGHT = 2**16 - 1
MAX_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Draft:
    """Asks the target to check guesses.

    `position` is where the first token of this message stands: whatever the
    server holds at or beyond it is dropped. `confirmed_token_ids` come first
    (settled tokens that the server lacks; empty in a normal round), the guesses
    follow. `distributions` has one entry a guess where the rule needs them
    (rejection at a temperature), and is empty otherwise. A draft that was sent ahead of
    the verdict before it names the bonus token that it assumes at `position` - 1: it is
    STALE unless the session holds exactly the tokens before `position` and ends in that one.
    In a session that runs ahead nothing is dropped: what it holds from there on is compared.
    """

    step_id: int
    position: int
    epoch: int
    token_ids: tuple[int, ...] = ()
    confirmed_token_ids: tuple[int, ...] = ()
    distributions: tuple[DraftDistribution, ...] = ()
    assumed_bonus_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answers a Draft.

    The confirmed tokens of the round are the first `accepted` guesses, then
    `next_token_id` (bonus token when all were accepted, recovered token after a
    rejection), which is None when the generation ended within the accepted ones.
    `position` is the number of tokens the server now holds, prompt included: where it runs
    ahead, some of the round's tokens, or all, were held before.
    """

    step_id: int
    epoch: int
    outcome: Outcome
    position: int
    accepted: int = 0
    next_token_id: int | None = None
    finish_reason: FinishReason | None = None
    timing: StepTiming = field(default_factory=StepTiming)


@dataclass(frozen=True, slots=True)
class Peer:
    """States one end's identity for the handshake.

    `model_fingerprint` is the target's, on the client the one that its text began with.
    """

    protocol_version: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    model_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Opens a session: who asks, the prompt once, and how tokens are chosen and ended.

    `generated_token_ids` are tokens already produced (a resumed session): they
    count towards `stop.max_new_tokens` and stand after the prompt. `run_ahead` is how
    many tokens the target may write alone while no request waits; 0: none. `draft_length` is
    how many guesses a draft model on the server makes a round; None: as many as the server likes.
    `conversation` names the conversation that this is a turn of, for the client's own later turns;
    empty: none.
    """

    peer: Peer
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams
    generated_token_ids: tuple[int, ...] = ()
    verification: VerificationParams = EXACT
    run_ahead: int = 0
    draft_length: int | None = None
    conversation: bytes = b""


@dataclass(frozen=True, slots=True)
class AheadTokens:
    """Brings what the target wrote while no request waited, standing at `position`."""

    position: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    timing: StepTiming


@dataclass(frozen=True, slots=True)
class AssistedRound:
    """Tells of one round of a draft model on the server: its counts as in a round of ours.

    `draft_ns` are the draft model's forwards it took part in, whole, `draft_busy_ns` its own
    share of them by tokens; neither is part of what a StepTiming counts but in its total.
    """

    num_draft_tokens: int
    num_accepted_tokens: int
    draft_ns: int
    draft_busy_ns: int


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """Carries tokens of a cloud arm as they are made; the last one names the reason.

    `round` says how they were guessed, None where nothing was.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    timing: StepTiming
    round: AssistedRound | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """Is what a model thinks of each token of a text, at temperature 1 and untruncated.

    `logprobs` are natural logarithms; of `ranks` 1 is the most probable token, and there are
    none from a server that does not tell them.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Describes a server: what it hosts, in which precision, and its limits.

    The draft model is the one beside the target; its texts are empty where there is none.
    """

    protocol_version: str
    server_version: str
    model_name: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    cache_dtype: str
    checkpoint_dtype: str
    device: str
    context_length: int
    eos_token_ids: tuple[int, ...]
    max_sessions: int
    max_draft_tokens: int
    token_budget: int
    cache_tokens: int
    max_message_bytes: int
    idle_session_seconds: float
    precision: dict[str, str]
    environment: dict[str, str]
    draft_model_name: str = ""
    draft_model_fingerprint: str = ""
