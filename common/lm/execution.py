"""How a forward is executed: by the module as it is, with our kernels, or as a graph.

`eager` is transformers' module, its attention alone replaced. `kernels` has the linear layers and
attention done by our own code. `compiled` is that as a graph in which everything between them is
fused: one graph for a single token, one for any more, so no shape is ever padded or compiled
again. With the kernels a model of a known form runs steps of few tokens whole (decoder.py).
`graphs` is the module on a GPU, its attention a kernel and its steps CUDA graphs (cuda/). All
read the same weights, once in memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import ConfigError
from common.lm.attention import LayerCall, RaggedStep, Span, current_step, kernel_step
from common.lm.cuda.capture import capture_on
from common.lm.decoder import Decoder, has_form
from common.lm.kv_cache import KVCache
from common.lm.loading import LoadedModel
from common.lm.native import load_kernels, use_kernels
from common.lm.pages import PAGE
from common.lm.staging import staged
from common.lm.wording import brief, quiet

logger = logging.getLogger(__name__)

CompileMode = Literal["auto", "off", "on"]
Path = Literal["eager", "kernels", "compiled", "graphs"]

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Token ids `[1, T]`, their positions `[1, T]` and the rows wanted in, logits out."""

ENGINE, DRAFT_ENGINE, COMPILING = "engine", "draft_engine", "compiling"
"""Where a server says how its models run, and what it says of one until its graphs are there."""
TOLERANCE = 1e-4
"""By how much logits of a graph may differ from the module's: of their scale, where that exceeds
1."""


class Execution:
    """Runs the packed row of a step, in the way chosen at the start or compiled since."""

    def __init__(self, module: PreTrainedModel, loaded: LoadedModel, mode: CompileMode) -> None:
        """Raises ConfigError when `on` cannot be had; `auto` makes do, and `note` says why."""
        self._module = module
        self._loaded = loaded
        self._mode = mode
        self._graph: Any = None
        self._decoder: Decoder | None = None
        self._replay: Any = None
        self.path: Path = "eager"
        self.is_compiling = False
        self.note = ""
        self._capture = None if mode == "off" else capture_on(loaded.device)
        if mode == "off" or self._capture:
            return
        if missing := self._unfit() or load_kernels():
            self._do_without(missing)
            return
        use_kernels(module)
        self.path = "kernels"

    @property
    def description(self) -> str:
        """The path, or that another is on its way."""
        return COMPILING if self.is_compiling else self.path

    def _unfit(self) -> str:
        fits = self._loaded.device.type == "cpu" and self._loaded.dtype is torch.float32
        return "" if fits else "the kernels are for float32 on the CPU"

    def _do_without(self, reason: str) -> None:
        self.note = reason
        self._say_without(reason)
        if self._mode == "on":
            raise ConfigError(f"engine.compile = on cannot be had: {reason}; set it to auto")

    def _say_without(self, reason: str) -> None:
        logger.info("%s runs as %s: %s", self._loaded.short_name, self.path, reason)

    @torch.inference_mode()
    def decode_whole(self, calls: Sequence[LayerCall], layers: KVCache) -> None:
        """Has steps of few tokens run by a decoder, where the module's layers are of its form.

        `calls` are how they attend. It is tried over a cache made like `layers`.
        """
        if self.path != "kernels" or not has_form(self._module, calls):
            return
        try:
            decoder = Decoder(self._module, calls)
            with _spare(layers) as (cache, session):

                def run(ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
                    spans = [Span(0, len(rows), session, int(positions[0, 0]))]
                    return decoder(cache, spans, ids[0].tolist(), rows.tolist())

                for position, count in _TRIED:
                    self._try(run, cache, session, position, count)
        except Exception as error:  # whatever is wrong with it, the module serves
            self._say_without(f"no step is run whole: {brief(error)}")
            return
        self._decoder = decoder

    @torch.inference_mode()
    def replay(self, cache: KVCache) -> None:
        """Has steps over a cache, still empty, replayed as CUDA graphs where there is a GPU.

        Raises as the initialiser.
        """
        if self._capture is None:
            return
        if self._loaded.dtype is not torch.float32:
            self._do_without("graphs on a GPU are for float32")
            return
        try:
            from common.lm.cuda.proof import proven_graphs  # imports Triton
        except ImportError as error:
            self._do_without(f"graphs on a GPU need Triton, and {error}")
            return
        try:
            with quiet():
                self._replay = proven_graphs(
                    partial(_logits, self._module), self._loaded, cache, self._capture, _equal
                )
        except Exception as error:  # whatever is wrong with them, the module serves
            self._do_without(f"steps cannot be captured as graphs: {brief(error)}")
            return
        self.path = "graphs"

    @torch.inference_mode()
    def compile(self, layers: KVCache) -> None:
        """Compiles the graphs and takes them into use; the module may serve meanwhile.

        They are tried over a cache of their own, made like `layers`. Raises as the initialiser.
        """
        if self.path != "kernels":
            return
        self.is_compiling = True
        try:
            self._compile(layers)
        finally:
            self.is_compiling = False

    def _compile(self, layers: KVCache) -> None:
        try:
            with quiet(), warnings.catch_warnings(), _spare(layers) as (cache, session):
                warnings.simplefilter("ignore")  # torch's own, about its own
                graph = torch.compile(
                    _apart(self._module), fullgraph=True, options={"guard_filter_fn": _of_inputs}
                )
                for position, count in _TRIED:
                    if count > 1 or self._decoder is None:  # which runs each single token
                        self._try(graph, cache, session, position, count)
        except Exception as error:  # whatever the compiler raises, the kernels serve
            self._do_without(f"the graph cannot be compiled: {brief(error)}")
            return
        self._graph = graph
        self.path = "compiled"

    def _try(self, run: Forward, cache: KVCache, session: int, position: int, count: int) -> None:
        spans = [Span(0, count, session, position)]
        ids = torch.arange(1, 1 + count)[None] % self._loaded.vocab_size
        positions = torch.arange(position, position + count)[None]
        rows = torch.arange(count)
        if count > 1:
            for tensor, dimension in ((ids, 1), (positions, 1), (rows, 0)):
                torch._dynamo.mark_dynamic(tensor, dimension)
        with kernel_step(cache, spans):
            got = run(ids, positions, rows)
            want = _logits(self._module, ids, positions, rows)
        _equal(got, want)

    def run(
        self,
        cache: KVCache,
        spans: Sequence[Span],
        tokens: list[int],
        positions: list[int],
        wanted: list[int],
    ) -> Tensor:
        """Returns logits `[len(wanted), width]` of some rows of a step."""
        if self._decoder is not None and len(tokens) <= self._decoder.most_tokens:
            return self._decoder(cache, spans, tokens, wanted)
        if self._replay is not None:
            replayed: Tensor = self._replay(cache, spans, tokens, wanted)
            return replayed
        device = self._loaded.device
        ids = staged(tokens, device)[None]
        places = staged(positions, device)[None]
        rows = staged(wanted, device)
        graph = self._graph
        with self._step(cache, spans):
            if graph is None:
                return _logits(self._module, ids, places, rows)
            # One graph is for one token and one row, the other for several of both.
            least = 1 if len(tokens) == 1 else len(wanted) + 2
            padded = torch.cat([rows, rows.new_zeros(least)])[:least]
            logits: Tensor = graph(ids, places, padded)
            return logits[: len(wanted)]

    def _step(self, cache: KVCache, spans: Sequence[Span]) -> AbstractContextManager[None]:
        if self.path == "eager":
            return current_step(RaggedStep(cache, list(spans)))
        return kernel_step(cache, spans)


_TRIED = ((0, 5), (5, 1), (0, 4))  # position and tokens of the steps that must come out as wanted


@contextmanager
def _spare(layers: KVCache) -> Iterator[tuple[KVCache, int]]:
    """Makes a small cache of the same layers, with a session for the steps that are tried."""
    cache = KVCache(layers.layers, PAGE, layers.dtype, layers.device)
    with cache.session(6) as session:
        cache.extend(session, 6)
        yield cache, session


def _equal(got: Tensor, want: Tensor) -> None:
    """Raises RuntimeError where logits differ by more than rounding."""
    allowed = TOLERANCE * max(1.0, want.abs().max().item())
    difference = (got - want).abs().max().item()
    if not difference <= allowed:  # also when it is not a number
        raise RuntimeError(
            f"its logits are {difference:.2g} off, at most {allowed:.2g} is rounding"
        )


def _logits(module: Any, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    output = module(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=rows)
    logits: Tensor = output.logits[0]
    return logits if len(logits) == len(rows) else logits[rows]  # some ignore logits_to_keep


def _apart(module: Any) -> Forward:
    """Returns a function of its own code: graphs are kept by code, and would be another model's."""

    def run(ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        return _logits(module, ids, positions, rows)

    return FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)


def _of_inputs(guards: Sequence[Any]) -> list[bool]:
    """Keeps the guards on shapes: the module and its weights never change, and checking that they
    have not takes longer than a small model's step."""
    inputs = {"ids", "positions", "rows"}  # some versions of torch name them L['ids'] and so on
    return [
        guard.guard_type == "SHAPE_ENV"
        or (guard.guard_type == "TENSOR_MATCH" and guard.name.strip("L[']") in inputs)
        for guard in guards
    ]
