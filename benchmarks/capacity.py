"""How much text one server makes for how many clients, by each arm, in float32 on this CPU.

    python -m benchmarks.capacity --out docs/results/capacity.md

One server, on one torch thread, has a draft model beside its target. One process plays all clients:
it replays texts that the bundled draft model made once, draft by draft. Verdicts depend on
prompt and drafts alone, so a replay gets the recorded ones; a text that comes out another ends
there and is counted as parted. No client drafts: it waits as long as a guess took when it was
recorded. Every client begins its next text when one has ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.capacity_chart import chart
from benchmarks.capacity_load import Load, Seen, drive
from benchmarks.capacity_recording import Recording, record
from benchmarks.tables import Table, environment
from tests.integration.processes import Server, serving

DEMO = Path(__file__).parents[1] / "demo"
ARMS = ("cloud_optimized", "speculative", "cloud_assisted")
BASE = ARMS[0]
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
MS = 1e3

Readings = Mapping[str, Sequence["Reading"]]


@dataclass(frozen=True, slots=True)
class Reading:
    """Is one load: its clients, what they got, and what the server did for it.

    `tpot_ms` are p50 and p95 over the texts that ended in the window; `sessions` are those of a
    forward of the target, the mean; `busy_ms` is the target's time a token, `draft_busy_ms` that of
    the draft model beside it; `client_share` is how much of a core the clients' process took.
    """

    clients: int
    tokens_per_s: float
    tpot_p50_ms: float
    tpot_p95_ms: float
    sessions: float
    forwards: float
    busy_ms: float
    draft_busy_ms: float
    texts: int
    parted: int
    client_share: float
    overslept_ms: float


def reading(clients: int, seen: Seen) -> Reading:
    """Returns the figures of a load's window."""
    window_s = seen.ended_s - seen.begun_s
    tokens = sum(n for at, n in seen.arrivals if seen.begun_s <= at < seen.ended_s)
    paces = [
        pace * MS
        for at, _, pace in seen.texts
        if seen.begun_s <= at < seen.ended_s and pace is not None
    ]
    if not tokens or not paces:
        raise SystemExit(f"no text of {clients} clients ended in the window: make --seconds longer")
    forwards = seen.grown("outrider_iteration_sessions_count")
    return Reading(
        clients=clients,
        tokens_per_s=tokens / window_s,
        tpot_p50_ms=median(paces),
        tpot_p95_ms=nearest_rank(paces, 0.95),
        sessions=seen.grown("outrider_iteration_sessions_sum") / forwards,
        forwards=forwards / tokens,
        busy_ms=MS * seen.grown("outrider_iteration_seconds_sum") / tokens,
        draft_busy_ms=MS * seen.grown("outrider_draft_iteration_seconds_sum") / tokens,
        texts=len(paces),
        parted=seen.parted,
        client_share=seen.client_cpu_s / window_s,
        overslept_ms=MS * median(seen.overslept) if seen.overslept else 0.0,
    )


def nearest_rank(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that at least this share of them does not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def capacity(readings: Sequence[Reading], limit_ms: float) -> Reading | None:
    """Returns the fastest of the loads within the limit; None where none is."""
    within = [r for r in readings if r.tpot_p95_ms <= limit_ms]
    return max(within, key=lambda r: r.tokens_per_s, default=None)


def measure(
    server: Server, recording: Recording, options: argparse.Namespace
) -> dict[str, list[Reading]]:
    """Drives every load, the arms in turns; of its repeats the one of median speed is kept."""
    found: dict[str, list[Reading]] = {arm: [] for arm in ARMS}
    for clients in options.clients:
        taken: dict[str, list[Reading]] = {arm: [] for arm in ARMS}
        for _ in range(options.repeats):
            for arm in ARMS:
                load = Load(
                    arm=arm,
                    clients=clients,
                    guess_s=recording.guess_s,
                    rtt_s=options.rtt_ms / MS,
                    seconds=options.seconds,
                    settle_s=options.settle,
                )
                taken[arm].append(
                    reading(clients, drive(server.address, server.metrics, recording, load))
                )
        for arm, repeats in taken.items():
            ranked = sorted(repeats, key=lambda r: r.tokens_per_s)
            found[arm].append(ranked[len(ranked) // 2])
            print(arm, found[arm][-1], flush=True)
    return found


def page(found: Readings, recording: Recording, options: argparse.Namespace, drawing: str) -> str:
    """Writes the page."""
    loads = Table(
        "clients", "arm", "tokens/s", "TPOT p50, ms", "p95, ms", "sessions a forward",
        "forwards a token", "target, ms a token", "draft model beside it, ms a token", "texts",
        "parted", "clients' process, cores",
    )  # fmt: skip
    for readings in zip(*(found[arm] for arm in ARMS), strict=True):
        for arm, r in zip(ARMS, readings, strict=True):
            loads.add(
                str(r.clients), f"`{arm}`", f"{r.tokens_per_s:.0f}", f"{r.tpot_p50_ms:.2f}",
                f"{r.tpot_p95_ms:.2f}", f"{r.sessions:.1f}", f"{r.forwards:.3f}",
                f"{r.busy_ms:.3f}", f"{r.draft_busy_ms:.3f}", str(r.texts), str(r.parted),
                f"{r.client_share:.2f}",
            )  # fmt: skip
    text = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    return (
        "# How many clients a server carries\n\nMade by `python -m benchmarks.capacity`. "
        f"{text}\n\n"
        f"{len(recording.texts)} texts of at most {options.tokens} tokens, draft length "
        f"{recording.draft_length}; a guess took {recording.guess_s * MS:.2f} ms. The round trip "
        f"is loopback's and {options.rtt_ms:g} ms: waited for once a round in `speculative`, once "
        f"a text elsewhere. Windows of {options.seconds:g} s after {options.settle:g} s, the "
        f"median of {options.repeats} by speed, the arms in turns; `engine.compile` "
        f"{options.compile} on both ends.\n\n{environment()}\n\n"
        f"![tokens a second and TPOT by number of clients]({drawing})\n\n{loads}\n\n"
        f"{limits_table(found, options.tpot_ms)}\n\n"
        "A load is one of those above: nothing is interpolated. TPOT is the client's: from the "
        "first arrival of a text to the last, over the tokens after the first. Forwards and busy "
        "time are the server's counters within the window, prompts included, over the tokens that "
        "arrived in it. Where the clients' process comes near a whole core, it and not the server "
        "may be the limit.\n"
    )


def limits_table(found: Readings, limits_ms: Sequence[float]) -> Table:
    """Returns what each arm makes at most within limits of its p95 TPOT, and over the first arm."""
    table = Table("p95 TPOT within, ms", "arm", "tokens/s at most", "clients", f"× `{BASE}`")
    for limit_ms in limits_ms:
        base = capacity(found[BASE], limit_ms)
        for arm in ARMS:
            best = capacity(found[arm], limit_ms)
            if best is None:
                table.add(f"{limit_ms:g}", f"`{arm}`", "none is within", "", "")
                continue
            ratio = "" if base is None else f"{best.tokens_per_s / base.tokens_per_s:.2f}"
            table.add(
                f"{limit_ms:g}", f"`{arm}`", f"{best.tokens_per_s:.0f}", str(best.clients), ratio
            )
    return table


def numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers, with commas between."""
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Writes the page, and its chart and its numbers beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=DEMO / "target")
    parser.add_argument("--draft", type=Path, default=DEMO / "draft")
    parser.add_argument("--prompts", type=Path, default=DEMO / "prompts.jsonl")
    parser.add_argument("--clients", type=numbers, default=CLIENTS)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--settle", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tpot-ms", type=numbers, default=(5, 10, 20, 40))
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with serving(
        options.target, "--draft-model", str(options.draft),
        "--set", f"engine.compile={options.compile}",
        "--set", f"cloud.max_sessions={2 * max(options.clients)}",
    ) as server:  # fmt: skip
        recording = record(
            server.address, options.draft, options.prompts,
            draft_length=options.length, tokens=options.tokens, limit=options.texts,
            compile_mode=options.compile,
        )  # fmt: skip
        found = measure(server, recording, options)
    drawing = options.out.with_suffix(".svg")
    drawing.write_text(chart(found), encoding="utf-8")
    options.out.write_text(page(found, recording, options, drawing.name), encoding="utf-8")
    as_json = {arm: [asdict(r) for r in readings] for arm, readings in found.items()}
    options.out.with_suffix(".json").write_text(json.dumps(as_json, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
