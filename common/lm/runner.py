"""Segments of many sessions in, logits out: one packed forward a step."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import InternalError
from common.lm import compatibility
from common.lm.attention import NAME, Span
from common.lm.execution import COMPILING, CompileMode, Execution
from common.lm.kv_cache import KVCache
from common.lm.loading import LoadedModel, twin
from common.lm.segments import Segment

__all__ = ["LanguageModel", "Segment", "compile_meanwhile"]


class LanguageModel:
    """Runs a model over the tokens of many sessions, packed into one row without padding."""

    def __init__(
        self, loaded: LoadedModel, cache_tokens: int, compile_mode: CompileMode = "off"
    ) -> None:
        """Makes the cache and proves the architecture; raises ModelError when it cannot be served.

        `cache_tokens` is the budget of the key/value cache over all sessions, less where a GPU has
        no memory for so many. `compile_mode` off
        runs transformers' module as it is; auto and on run it with our kernels, ConfigError if on
        cannot be had (see execution.py).
        """
        self.loaded = loaded
        self._module = twin(loaded.model, NAME)
        self.execution = Execution(self._module, loaded, compile_mode)
        layers = compatibility.observe_layers(loaded, self._module)
        shapes = [shape for _, shape in layers]
        self.cache = KVCache(shapes, cache_tokens, loaded.dtype, loaded.device)
        self.execution.decode_whole([call for call, _ in layers], self.cache)
        self.execution.replay(self.cache)
        compatibility.probe(self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, cache and logits."""
        return self.loaded.dtype

    @property
    def stock(self) -> PreTrainedModel:
        """The unmodified transformers module over the same weights, for `generate`."""
        return self.loaded.model

    def compile(self) -> None:
        """Compiles the graphs, unless the mode is off; the module serves meanwhile.

        From then on it serves as a graph, or why not is in `execution.note`. Raises ConfigError
        when the mode is on and there is none.
        """
        self.execution.compile(self.cache)

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Runs one step and returns logits `[sum(num_logits), vocab_size]` in segment order.

        Raises OverloadedError, with no session changed, when the cache has no room. When the
        model itself fails, every session of the step is left with its first `position` tokens.
        """
        return self.forward_in(self.cache, segments)

    @torch.inference_mode()
    def forward_in(self, cache: KVCache, segments: Sequence[Segment]) -> Tensor:
        """Does what `forward` does, over another cache of the same layers."""
        self._check(cache, segments)
        cache.place({segment.session: (segment.position, segment.end) for segment in segments})
        try:
            return self._run(cache, segments)
        except BaseException:
            for segment in segments:
                cache.truncate(segment.session, segment.position)
            raise

    def _run(self, cache: KVCache, segments: Sequence[Segment]) -> Tensor:
        spans: list[Span] = []
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for segment in segments:
            start, stop = len(tokens), len(tokens) + len(segment.token_ids)
            spans.append(Span(start, stop, segment.session, segment.position))
            tokens.extend(segment.token_ids)
            positions.extend(range(segment.position, segment.position + stop - start))
            wanted.extend(range(stop - segment.num_logits, stop))
        logits = self.execution.run(cache, spans, tokens, positions, wanted)
        return logits[:, : self.loaded.vocab_size]

    def _check(self, cache: KVCache, segments: Sequence[Segment]) -> None:
        if not segments:
            raise InternalError("a step without segments")
        if len({segment.session for segment in segments}) < len(segments):
            raise InternalError("a session appears twice in one step")
        for segment in segments:
            count, held = len(segment.token_ids), cache.length(segment.session)
            if not 0 <= segment.position <= held:
                raise InternalError(
                    f"session {segment.session} holds {held} tokens: cannot continue "
                    f"from {segment.position}"
                )
            if count < 1 or not 0 <= segment.num_logits <= count:
                raise InternalError(f"{segment.num_logits} logits of {count} tokens")
            if segment.end > self.loaded.context_length:
                raise InternalError(
                    f"session {segment.session} would reach {segment.end} tokens: the context "
                    f"ends at {self.loaded.context_length}"
                )
            if not all(0 <= token < self.loaded.vocab_size for token in segment.token_ids):
                raise InternalError(f"a token outside the vocabulary of {self.loaded.vocab_size}")


def compile_meanwhile(*models: LanguageModel) -> None:
    """Compiles the graphs of models in turn, on a thread that does not outlive the process.

    Those that have nothing to compile are passed over.
    """
    waiting = [model for model in models if model.execution.path == "kernels"]

    def run() -> None:
        for model in waiting:
            model.compile()

    for model in waiting:
        model.execution.is_compiling = True
    if waiting:
        threading.Thread(target=run, name=COMPILING, daemon=True).start()
