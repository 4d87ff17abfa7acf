"""The models: loaded as configured, each with the cache of many sessions."""

from __future__ import annotations

from common.config import Config
from common.errors import HandshakeError
from common.lm.execution import CompileMode
from common.lm.loading import load
from common.lm.precision import apply_policy
from common.lm.runner import LanguageModel
from common.lm.threads import set_threads


class CloudModel(LanguageModel):
    """Is the target: weights in float32 unless asked otherwise, and the cache of many sessions."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "auto",
        threads: int | None = None,
        cache_tokens: int = 65536,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        compile_mode: CompileMode = "off",
    ) -> None:
        """Applies the precision policy of this process and loads the model.

        `threads` is how many torch uses in this process (see common/lm/threads.py).
        Raises ModelError for a model that is missing or cannot be served exactly.
        """
        self.precision = apply_policy(dtype)
        loaded = load(
            path,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        set_threads(threads, loaded)
        super().__init__(loaded, cache_tokens, compile_mode)


def load_target(path: str, config: Config) -> CloudModel:
    """Loads the target as configured, compiled where the mode is on."""
    cloud = config.cloud
    target = CloudModel(
        path,
        dtype=cloud.dtype,
        device=cloud.device,
        threads=cloud.threads,
        cache_tokens=cloud.cache_tokens,
        trust_remote_code=cloud.trust_remote_code,
        allow_pickle=cloud.allow_pickle,
        compile_mode=config.engine.compile,
    )
    if config.engine.compile == "on":
        target.compile()
    return target


def load_draft(path: str, target: CloudModel, config: Config) -> LanguageModel:
    """Loads a draft model beside the target: same precision, device and engine, a cache as large.

    Raises ModelError as the target does, and HandshakeError where their tokenizers differ.
    """
    cloud = config.cloud
    loaded = load(
        path,
        dtype=cloud.dtype,
        device=str(target.loaded.device),
        trust_remote_code=cloud.trust_remote_code,
        allow_pickle=cloud.allow_pickle,
    )
    ours, theirs = target.loaded, loaded
    if theirs.tokenizer_fingerprint != ours.tokenizer_fingerprint:
        raise HandshakeError(
            f"tokenizer: --draft-model {theirs.tokenizer_fingerprint[:12]} ({theirs.vocab_size} "
            f"entries), --model {ours.tokenizer_fingerprint[:12]} ({ours.vocab_size} entries); "
            "use a draft model trained with the target's tokenizer"
        )
    draft = LanguageModel(loaded, cloud.cache_tokens, config.engine.compile)
    if config.engine.compile == "on":
        draft.compile()
    return draft
