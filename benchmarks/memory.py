"""What a server's engine takes of memory at the most its configuration admits, and under a cap.

    python -m benchmarks.memory --out docs/results/memory.md

The model is random, with the shape of Qwen2.5-0.5B (494 million parameters), in float32 on this
CPU. Each run is a fresh process. The cache is filled without forwards, by writing zeros: what it
takes does not depend on what is in it. Then the engine runs a step of prompts and a step of
verification, each as full as token budget, chunks, draft length and sessions allow; every position
that is judged has its logits.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sampling import VOCAB, half_a_billion
from benchmarks.tables import Table, environment
from cloud_server.acceptance import Check
from cloud_server.engine import Engine
from cloud_server.jobs import Job, StepReport
from common.config import CloudSection, SideLimits, load
from common.errors import OutriderError
from common.lm.kv_cache import KVCache
from common.lm.runner import LanguageModel
from common.machine.limits import GB, enforce
from common.types import SamplingParams

CONFIGS = Path(__file__).parents[1] / "configs"
CAP_GB = 3.25
"""What configs/memory_optimized.yaml says that this shape runs within, as limits.cloud.memory_gb
counts."""
GREEDY, SAMPLED = SamplingParams(), SamplingParams(1.0, top_p=0.95, seed=7)
SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Run:
    """Is one process: its configuration and cap, and its peak memory by then, in bytes.

    `prompts` and `verify` are the steps of the engine, `sampled` a verification at temperature 1;
    `tokens` are those of the fullest step. None where that was not run.
    """

    config: str
    cap_gb: float | None
    loaded: int
    cached: int
    prompts: int
    verify: int
    sampled: int | None
    tokens: int

    @property
    def peak(self) -> int:
        """The most of all."""
        return max(self.loaded, self.cached, self.prompts, self.verify, self.sampled or 0)


def peak_bytes() -> int:
    """Returns the most that this process has had resident so far."""
    status = Path("/proc/self/status").read_text()
    kib = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
    return kib * 1024


def measure(name: str, cap_gb: float | None, sampled: bool) -> Run:
    """Runs one configuration at its full load in this process, under the cap."""
    enforce(SideLimits(memory_gb=cap_gb))
    config = load(CONFIGS / f"{name}.yaml")
    cloud = config.cloud
    shape = replace(half_a_billion().loaded, vocab_size=VOCAB)  # its tokenizer is a small one
    model = LanguageModel(shape, cloud.cache_tokens, config.engine.compile)
    model.compile()
    loaded = peak_bytes()
    each = min(cloud.cache_tokens // cloud.max_sessions, model.loaded.context_length)
    sessions = [filled(model.cache, each) for _ in range(cloud.max_sessions)]
    cached = peak_bytes()
    load_of = _Load(model, cloud, sessions, list(range(1, 1 + each)))
    load_of.prompts()
    prompts = peak_bytes()
    load_of.verify(GREEDY)
    verify = peak_bytes()
    if sampled:
        load_of.verify(SAMPLED)
    return Run(
        config=name,
        cap_gb=cap_gb,
        loaded=loaded,
        cached=cached,
        prompts=prompts,
        verify=verify,
        sampled=peak_bytes() if sampled else None,
        tokens=max(report.tokens for report in load_of.reports),
    )


def filled(cache: KVCache, tokens: int) -> int:
    """Opens a session and gives it so many tokens, of zeros."""
    session = cache.allocate(tokens)
    cache.extend(session, tokens)
    for index, layer in enumerate(cache.layers):
        keys = torch.zeros(layer.heads, tokens, layer.key_size)
        values = torch.zeros(layer.heads, tokens, layer.value_size)
        cache.write(session, index, 0, keys, values)
    return session


class _Load:
    """Has an engine run what its configuration admits at most; `sessions` are full of `tokens`."""

    def __init__(
        self, model: LanguageModel, cloud: CloudSection, sessions: Sequence[int], tokens: list[int]
    ) -> None:
        self._cloud = cloud
        self._sessions = sessions
        self._tokens = tokens
        self._told: queue.SimpleQueue[OutriderError | None] = queue.SimpleQueue()
        self.reports: list[StepReport] = []
        self._engine = Engine(
            model,
            token_budget=cloud.token_budget,
            prefill_chunk=cloud.prefill_chunk,
            clock=time.monotonic_ns,
            on_step=self.reports.append,
        )
        self._engine.start()

    def prompts(self) -> None:
        """Runs the last chunk of as many prompts as a step takes."""
        chunk = min(self._cloud.prefill_chunk, len(self._tokens) - 1)
        self._run([
            self._job(session, chunk, None)
            for session in self._sessions[: self._cloud.token_budget // chunk]
        ])  # fmt: skip

    def verify(self, sampling: SamplingParams) -> None:
        """Checks the longest drafts there may be in all sessions at once."""
        guesses = self._cloud.max_draft_tokens
        check = Check(
            context=tuple(self._tokens[:-guesses]),
            guesses=tuple(self._tokens[-guesses:]),
            valid=0,
            prompt_length=1,
            sampling=sampling,
        )
        self._run([self._job(session, guesses + 1, check) for session in self._sessions])

    def _job(self, session: int, unread: int, check: Check | None) -> Job:
        return Job(
            session=session,
            tokens=self._tokens,
            valid=len(self._tokens) - unread,
            check=check,
            arrived_ns=time.monotonic_ns(),
            then=lambda judged, timing: self._told.put(None),
            failed=self._told.put,
        )

    def _run(self, jobs: list[Job]) -> None:
        def submit() -> None:
            for job in jobs:
                self._engine.submit(job)

        self._engine.call(submit)  # so that the first step finds them all
        for _ in jobs:
            if (error := self._told.get(timeout=SECONDS)) is not None:
                raise SystemExit(f"a step failed: {error}")


def measured(name: str, *flags: str) -> Run:
    """Has a fresh process measure one configuration."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", name, *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    print(found, flush=True)
    return Run(**found)


def page(runs: Sequence[Run]) -> str:
    """Writes the page."""
    most = runs[0].peak
    table = Table(
        "configuration", "cap, GB", "weights and graphs", "cache full", "after a step of prompts",
        "of verification", "of it, sampled", "peak ÷ default's", "tokens of the fullest step",
    )  # fmt: skip
    for run in runs:
        stages = (run.loaded, run.cached, run.prompts, run.verify, run.sampled)
        table.add(
            f"`{run.config}`", "none" if run.cap_gb is None else f"{run.cap_gb:g}",
            *("" if peak is None else f"{peak / 1e6:.0f} MB" for peak in stages),
            f"{run.peak / most:.2f}", str(run.tokens),
        )  # fmt: skip
    cap = CAP_GB * GB / most
    text = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    return (
        "# Memory at full load, and the cap of `memory_optimized`\n\n"
        f"Made by `python -m benchmarks.memory`. {text}\n\n{environment()}\n\n{table}\n\n"
        "Figures are the peak of resident memory since the process began, 10⁶ bytes to the MB; a "
        f"GB of the cap is 1024³ bytes, as in `limits.cloud.memory_gb`, which enforces it. "
        f"{CAP_GB:g} GB are {cap:.2f} of the default's peak; at most 0.67 is wanted. The default "
        "is not run with sampling, which would only raise it.\n"
    )


def main() -> None:
    """Writes the page, and its numbers as JSON beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    parser.add_argument(
        "--measure", choices=("default", "memory_optimized"), help=argparse.SUPPRESS
    )
    parser.add_argument("--cap-gb", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--sampled", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        run = measure(options.measure, options.cap_gb, options.sampled)
        print(json.dumps(asdict(run)))
        return
    if options.out is None:
        parser.error("--out is needed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = [
        measured("default"),
        measured("memory_optimized", "--sampled"),
        measured("memory_optimized", "--sampled", "--cap-gb", f"{CAP_GB:g}"),
    ]
    options.out.write_text(page(runs), encoding="utf-8")
    numbers = json.dumps([asdict(run) for run in runs], indent=1) + "\n"
    options.out.with_suffix(".json").write_text(numbers, encoding="utf-8")


if __name__ == "__main__":
    main()
