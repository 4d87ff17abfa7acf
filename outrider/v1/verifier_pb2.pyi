from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerificationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERIFICATION_MODE_UNSPECIFIED: _ClassVar[VerificationMode]
    VERIFICATION_MODE_COUPLED: _ClassVar[VerificationMode]
    VERIFICATION_MODE_REJECTION: _ClassVar[VerificationMode]
    VERIFICATION_MODE_RANK: _ClassVar[VerificationMode]
    VERIFICATION_MODE_TYPICAL: _ClassVar[VerificationMode]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_VERIFIED: _ClassVar[Outcome]
    OUTCOME_STALE: _ClassVar[Outcome]
    OUTCOME_MISMATCH: _ClassVar[Outcome]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
    FINISH_REASON_MAX_NEW_TOKENS: _ClassVar[FinishReason]
    FINISH_REASON_CONTEXT_LENGTH: _ClassVar[FinishReason]

class GenerateMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GENERATE_MODE_UNSPECIFIED: _ClassVar[GenerateMode]
    GENERATE_MODE_STOCK: _ClassVar[GenerateMode]
    GENERATE_MODE_OPTIMIZED: _ClassVar[GenerateMode]
    GENERATE_MODE_ASSISTED: _ClassVar[GenerateMode]
VERIFICATION_MODE_UNSPECIFIED: VerificationMode
VERIFICATION_MODE_COUPLED: VerificationMode
VERIFICATION_MODE_REJECTION: VerificationMode
VERIFICATION_MODE_RANK: VerificationMode
VERIFICATION_MODE_TYPICAL: VerificationMode
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_VERIFIED: Outcome
OUTCOME_STALE: Outcome
OUTCOME_MISMATCH: Outcome
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP_STRING: FinishReason
FINISH_REASON_MAX_NEW_TOKENS: FinishReason
FINISH_REASON_CONTEXT_LENGTH: FinishReason
GENERATE_MODE_UNSPECIFIED: GenerateMode
GENERATE_MODE_STOCK: GenerateMode
GENERATE_MODE_OPTIMIZED: GenerateMode
GENERATE_MODE_ASSISTED: GenerateMode

class Peer(_message.Message):
    __slots__ = ("protocol_version", "tokenizer_fingerprint", "vocab_size", "dtype", "model_fingerprint")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: str
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    model_fingerprint: str
    def __init__(self, protocol_version: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., model_fingerprint: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ...) -> None: ...

class VerificationParams(_message.Message):
    __slots__ = ("mode", "rank_threshold", "typical_threshold", "typical_alpha", "gated")
    MODE_FIELD_NUMBER: _ClassVar[int]
    RANK_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_ALPHA_FIELD_NUMBER: _ClassVar[int]
    GATED_FIELD_NUMBER: _ClassVar[int]
    mode: VerificationMode
    rank_threshold: int
    typical_threshold: float
    typical_alpha: float
    gated: bool
    def __init__(self, mode: _Optional[_Union[VerificationMode, str]] = ..., rank_threshold: _Optional[int] = ..., typical_threshold: _Optional[float] = ..., typical_alpha: _Optional[float] = ..., gated: bool = ...) -> None: ...

class StopParams(_message.Message):
    __slots__ = ("max_new_tokens", "eos_token_ids", "ignore_eos", "stop_strings")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, max_new_tokens: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., stop_strings: _Optional[_Iterable[str]] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("peer", "prompt_token_ids", "generated_token_ids", "sampling", "stop", "verification", "run_ahead", "draft_length", "conversation")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    RUN_AHEAD_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    peer: Peer
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    generated_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SamplingParams
    stop: StopParams
    verification: VerificationParams
    run_ahead: int
    draft_length: int
    conversation: bytes
    def __init__(self, peer: _Optional[_Union[Peer, _Mapping]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., generated_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., stop: _Optional[_Union[StopParams, _Mapping]] = ..., verification: _Optional[_Union[VerificationParams, _Mapping]] = ..., run_ahead: _Optional[int] = ..., draft_length: _Optional[int] = ..., conversation: _Optional[bytes] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("open", "verify")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    verify: VerifyRequest
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., verify: _Optional[_Union[VerifyRequest, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("opened", "verdict", "ahead")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    verdict: Verdict
    ahead: AheadTokens
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., ahead: _Optional[_Union[AheadTokens, _Mapping]] = ...) -> None: ...

class AheadTokens(_message.Message):
    __slots__ = ("position", "token_ids", "finish_reason", "timing")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: FinishReason
    timing: StepTiming
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("position", "context_length")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    position: int
    context_length: int
    def __init__(self, position: _Optional[int] = ..., context_length: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("step_id", "position", "epoch", "confirmed_token_ids", "draft_token_ids", "candidate_counts", "candidate_token_ids", "candidate_weights", "assumed_bonus_token_id")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ASSUMED_BONUS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    position: int
    epoch: int
    confirmed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    candidate_counts: _containers.RepeatedScalarFieldContainer[int]
    candidate_token_ids: _containers.RepeatedScalarFieldContainer[int]
    candidate_weights: bytes
    assumed_bonus_token_id: int
    def __init__(self, step_id: _Optional[int] = ..., position: _Optional[int] = ..., epoch: _Optional[int] = ..., confirmed_token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., candidate_counts: _Optional[_Iterable[int]] = ..., candidate_token_ids: _Optional[_Iterable[int]] = ..., candidate_weights: _Optional[bytes] = ..., assumed_bonus_token_id: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("step_id", "epoch", "outcome", "position", "accepted_count", "next_token_id", "finish_reason", "timing")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    epoch: int
    outcome: Outcome
    position: int
    accepted_count: int
    next_token_id: int
    finish_reason: FinishReason
    timing: StepTiming
    def __init__(self, step_id: _Optional[int] = ..., epoch: _Optional[int] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., position: _Optional[int] = ..., accepted_count: _Optional[int] = ..., next_token_id: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ...) -> None: ...

class StepTiming(_message.Message):
    __slots__ = ("queued_ns", "batched_ns", "computed_ns", "total_ns", "busy_ns", "step_sessions", "step_tokens", "forward_passes")
    QUEUED_NS_FIELD_NUMBER: _ClassVar[int]
    BATCHED_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    STEP_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    queued_ns: int
    batched_ns: int
    computed_ns: int
    total_ns: int
    busy_ns: int
    step_sessions: int
    step_tokens: int
    forward_passes: int
    def __init__(self, queued_ns: _Optional[int] = ..., batched_ns: _Optional[int] = ..., computed_ns: _Optional[int] = ..., total_ns: _Optional[int] = ..., busy_ns: _Optional[int] = ..., step_sessions: _Optional[int] = ..., step_tokens: _Optional[int] = ..., forward_passes: _Optional[int] = ...) -> None: ...

class VerifyBatchRequest(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[VerifyBatchEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[VerifyBatchEntry, _Mapping]]] = ...) -> None: ...

class VerifyBatchEntry(_message.Message):
    __slots__ = ("open", "session_token", "verify", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: OpenSession
    session_token: bytes
    verify: VerifyRequest
    close: bool
    def __init__(self, open: _Optional[_Union[OpenSession, _Mapping]] = ..., session_token: _Optional[bytes] = ..., verify: _Optional[_Union[VerifyRequest, _Mapping]] = ..., close: bool = ...) -> None: ...

class VerifyBatchResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[VerifyBatchResult]
    def __init__(self, results: _Optional[_Iterable[_Union[VerifyBatchResult, _Mapping]]] = ...) -> None: ...

class VerifyBatchResult(_message.Message):
    __slots__ = ("session_token", "verdict", "error")
    SESSION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    session_token: bytes
    verdict: Verdict
    error: EntryError
    def __init__(self, session_token: _Optional[bytes] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., error: _Optional[_Union[EntryError, _Mapping]] = ...) -> None: ...

class EntryError(_message.Message):
    __slots__ = ("code", "reason", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("mode", "open")
    MODE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    mode: GenerateMode
    open: OpenSession
    def __init__(self, mode: _Optional[_Union[GenerateMode, str]] = ..., open: _Optional[_Union[OpenSession, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("token_ids", "finish_reason", "timing", "round")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: FinishReason
    timing: StepTiming
    round: AssistedRound
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., timing: _Optional[_Union[StepTiming, _Mapping]] = ..., round: _Optional[_Union[AssistedRound, _Mapping]] = ...) -> None: ...

class AssistedRound(_message.Message):
    __slots__ = ("draft_count", "accepted_count", "draft_ns", "draft_busy_ns")
    DRAFT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_NS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    draft_count: int
    accepted_count: int
    draft_ns: int
    draft_busy_ns: int
    def __init__(self, draft_count: _Optional[int] = ..., accepted_count: _Optional[int] = ..., draft_ns: _Optional[int] = ..., draft_busy_ns: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("context_token_ids", "token_ids", "text_token_ids")
    CONTEXT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    context_token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, context_token_ids: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., text_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("logits", "text_logprobs", "text_ranks")
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    TEXT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TEXT_RANKS_FIELD_NUMBER: _ClassVar[int]
    logits: _containers.RepeatedScalarFieldContainer[float]
    text_logprobs: _containers.RepeatedScalarFieldContainer[float]
    text_ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, logits: _Optional[_Iterable[float]] = ..., text_logprobs: _Optional[_Iterable[float]] = ..., text_ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("payload", "total_ns")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    total_ns: int
    def __init__(self, payload: _Optional[bytes] = ..., total_ns: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("protocol_version", "server_version", "model_name", "model_fingerprint", "tokenizer_fingerprint", "vocab_size", "dtype", "cache_dtype", "checkpoint_dtype", "device", "context_length", "eos_token_ids", "limits", "precision", "environment", "draft_model_name", "draft_model_fingerprint")
    class PrecisionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class EnvironmentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CACHE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
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
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    limits: Limits
    precision: _containers.ScalarMap[str, str]
    environment: _containers.ScalarMap[str, str]
    draft_model_name: str
    draft_model_fingerprint: str
    def __init__(self, protocol_version: _Optional[str] = ..., server_version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., cache_dtype: _Optional[str] = ..., checkpoint_dtype: _Optional[str] = ..., device: _Optional[str] = ..., context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., precision: _Optional[_Mapping[str, str]] = ..., environment: _Optional[_Mapping[str, str]] = ..., draft_model_name: _Optional[str] = ..., draft_model_fingerprint: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_sessions", "max_draft_tokens", "token_budget", "cache_tokens", "max_message_bytes", "idle_session_seconds")
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BUDGET_FIELD_NUMBER: _ClassVar[int]
    CACHE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SESSION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_sessions: int
    max_draft_tokens: int
    token_budget: int
    cache_tokens: int
    max_message_bytes: int
    idle_session_seconds: float
    def __init__(self, max_sessions: _Optional[int] = ..., max_draft_tokens: _Optional[int] = ..., token_budget: _Optional[int] = ..., cache_tokens: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., idle_session_seconds: _Optional[float] = ...) -> None: ...
