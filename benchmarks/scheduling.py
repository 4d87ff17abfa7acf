"""What the batch window and chunks of prompts do to speed and waiting, in float32 on this CPU.

    python -m benchmarks.scheduling --out docs/results/scheduling.md

The window: one server for each, the bundled pair, and clients that replay recorded drafts
(benchmarks/capacity.py says how). The chunks: one server for each size, a random model of 4 layers
of width 256 with a context of 8,192 tokens; some clients decode, and one more sends a prompt of
7,936 tokens as soon as the one before has its first token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.capacity import DEMO, Reading, numbers, reading
from benchmarks.capacity_load import Load, drive
from benchmarks.capacity_recording import record
from benchmarks.scheduling_prompts import (
    CONTEXT,
    PROMPT,
    Between,
    decode_beside_prompts,
    random_target,
)
from benchmarks.tables import Table, environment
from tests.integration.processes import serving

WINDOWS = (0, 1, 2, 5)
"""Milliseconds."""
CLIENTS = (8, 32)
CHUNKS = (64, 256, CONTEXT)
NO_PROMPTS = "none"

Windows = Mapping[int, Sequence[Reading]]
"""Of each window, what each number of clients got."""
Chunks = Mapping[str, Between]


def windows(options: argparse.Namespace) -> dict[int, list[Reading]]:
    """Drives the same loads against a server of each window, in turns."""
    found: dict[int, list[Reading]] = {window: [] for window in WINDOWS}
    with ExitStack() as stack:
        servers = {
            window: stack.enter_context(
                serving(
                    DEMO / "target", "--set", f"engine.compile={options.compile}",
                    "--set", f"cloud.batch_window_ms={window}",
                    "--set", f"cloud.max_sessions={2 * max(options.clients)}",
                )
            )
            for window in WINDOWS
        }  # fmt: skip
        recording = record(
            servers[0].address, DEMO / "draft", DEMO / "prompts.jsonl",
            draft_length=4, tokens=64, limit=options.texts, compile_mode=options.compile,
        )  # fmt: skip
        for clients in options.clients:
            load = Load(
                arm="speculative", clients=clients, guess_s=recording.guess_s, rtt_s=0.0,
                seconds=options.seconds, settle_s=options.settle,
            )  # fmt: skip
            for window, server in servers.items():
                seen = drive(server.address, server.metrics, recording, load)
                found[window].append(reading(clients, seen))
                print(f"window {window} ms", found[window][-1], flush=True)
    return found


def chunks(options: argparse.Namespace) -> dict[str, Between]:
    """Has some decode while long prompts come in, at each size of chunks; first without prompts."""
    found: dict[str, Between] = {}
    with TemporaryDirectory() as directory:
        target = random_target(Path(directory))
        for chunk in CHUNKS:
            with serving(
                target, "--set", f"engine.compile={options.compile}",
                "--set", f"cloud.prefill_chunk={chunk}",
                "--set", f"cloud.token_budget={CONTEXT + 64}",
            ) as server:  # fmt: skip
                for name, prompts in ((NO_PROMPTS, 0), (str(chunk), options.prompts)):
                    if name in found:
                        continue
                    found[name] = decode_beside_prompts(
                        server.address, decoding=options.decoding, prompts=prompts,
                        seconds=options.seconds, settle_s=options.settle,
                    )  # fmt: skip
                    print(f"chunks of {name}", found[name], flush=True)
    return found


def windows_table(found: Windows) -> Table:
    """Returns a row for each load and window."""
    table = Table(
        "clients", "window, ms", "tokens/s", "TPOT p50, ms", "p95, ms", "sessions a forward",
        "forwards a token", "target, ms a token", "parted",
    )  # fmt: skip
    for window_readings in zip(*found.values(), strict=True):
        for window, r in zip(found, window_readings, strict=True):
            table.add(
                str(r.clients), str(window), f"{r.tokens_per_s:.0f}", f"{r.tpot_p50_ms:.2f}",
                f"{r.tpot_p95_ms:.2f}", f"{r.sessions:.1f}", f"{r.forwards:.3f}",
                f"{r.busy_ms:.3f}", str(r.parted),
            )  # fmt: skip
    return table


def chunks_table(found: Chunks) -> Table:
    """Returns a row for each size of chunks."""
    table = Table(
        "chunks of", "between two tokens, p50, ms", "p95, ms", "the longest, ms",
        "tokens/s of those who decode", "TTFT of the long prompts, s",
    )  # fmt: skip
    for name, seen in found.items():
        size = {NO_PROMPTS: "no long prompts", str(CONTEXT): "the whole prompt"}.get(name, name)
        table.add(
            size, f"{seen.p50_ms:.2f}", f"{seen.p95_ms:.2f}", f"{seen.longest_ms:.0f}",
            f"{seen.tokens_per_s:.0f}",
            "" if seen.ttft_s is None else f"{seen.ttft_s:.2f}",
        )  # fmt: skip
    return table


def page(by_window: Windows, by_chunk: Chunks, options: argparse.Namespace) -> str:
    """Writes the page."""
    return (
        "# What scheduling does\n\nMade by `python -m benchmarks.scheduling`. Each load "
        f"lasts {options.seconds:g} s after {options.settle:g} s; `engine.compile` "
        f"{options.compile}.\n\n{environment()}\n\n"
        "## The batch window\n\n`cloud.batch_window_ms`, the arm `speculative` with draft length "
        "4 over loopback, the bundled pair; the clients replay recorded drafts and sleep for as "
        f"long as drafting took. Columns as in `benchmarks.capacity`.\n\n"
        f"{windows_table(by_window)}\n\n"
        "## Chunks of prompts\n\n`cloud.prefill_chunk`, a random model of 4 layers of width 256 "
        f"with a context of {CONTEXT:,} tokens; {options.decoding} clients decode "
        f"(`cloud_optimized`), one more sends {options.prompts} prompts of {PROMPT:,} tokens, one "
        "after another; the figures are those of that time. A gap counts from one "
        f"token's arrival at its client to the next.\n\n{chunks_table(by_chunk)}\n"
    )


def main() -> None:
    """Writes the page, and its numbers as JSON beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=numbers, default=CLIENTS)
    parser.add_argument("--decoding", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--settle", type=float, default=2.0)
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    by_window, by_chunk = windows(options), chunks(options)
    options.out.write_text(page(by_window, by_chunk, options), encoding="utf-8")
    as_json = {
        "windows_ms": {str(window): [asdict(r) for r in rs] for window, rs in by_window.items()},
        "prefill_chunk": {name: asdict(seen) for name, seen in by_chunk.items()},
    }
    options.out.with_suffix(".json").write_text(json.dumps(as_json, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
