"""The target model: loaded as configured, with the cache of many sessions."""

from __future__ import annotations

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
