"""Whether the network is hidden where it can be: every way of pacing drafts, over every link.

    python -m benchmarks.network --out docs/results/network.md

One server and one client on this machine, one torch thread each, and `outrider-link` between them.
Times are only comparable within this page; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import network_arms, network_grid
from benchmarks.network_arms import (
    ROUND_TRIPS_MS,
    arms_over_rtt,
    arms_table,
    bytes_line,
    middle,
    run_ahead_line,
)
from benchmarks.network_charts import chart
from benchmarks.network_client import TOKENS
from benchmarks.network_grid import (
    ACCEPTANCES,
    DRAFT_MS,
    LENGTHS,
    TARGET_MS,
    WORTH_TRYING,
    cells,
    grid_table,
    made_pairs,
    verdicts,
)
from benchmarks.pairs import BASE, step_ms, widened, width_of
from benchmarks.tables import environment
from edge_client.adaptive import MOST_AHEAD
from tests.integration.processes import serving

PAGE = """# The network, hidden where it can be

Made by `python -m benchmarks.network`: one server, one client, one torch thread each, and the relay
between them. Texts of {tokens} tokens. Speeds are tokens a second of whole texts, the first round
trip included: medians of {arm_turns} turns for the arms, means of {turns} texts for the grid, which
took turns with what they are held against. A pace that adapts had written {taught} before.

{environment}

## The arms over the link

The bundled pair, greedy. In brackets: target forwards a token, the prompt's included.

{arms}

{alone}

{bytes}

![tokens a second and target forwards a token against round trip]({chart})

## Every pace on every link

A target of {target_ms:.1f} ms a step, and drafts of it whose step is set by their width and whose
acceptance by noise on their weights; temperature 1. All settings of a cell write the same text, so
guesses are right in the same places. Fixed settings are γ of {lengths}, waited for
or sent up to {ahead} ahead: the best of each kind was found over one text, and timed over others.
Those the closed form puts below {worth} of the best of their kind were not run. Draft steps as
measured: {steps}.

{verdicts}

{grid}
"""


def main() -> None:
    """Measures and writes the page and its chart."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--rtt", type=float, nargs="*", default=ROUND_TRIPS_MS, metavar="MS")
    parser.add_argument("--draft", type=float, nargs="*", default=DRAFT_MS, metavar="MS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        target = widened(scratch / "target", width_of(TARGET_MS, scratch))
        pairs = made_pairs(scratch, target)
        steps = {ms: step_ms(pairs[ms, ACCEPTANCES[0]]) for ms in options.draft}
        target_ms = step_ms(target)
        wanted = {key: path for key, path in pairs.items() if key[0] in options.draft}
        with serving(target, "--set", "cloud.threads=1") as server:
            measured = list(cells(wanted, server.address, options.rtt))
        with serving(BASE.parent / "target", "--set", "cloud.threads=1") as server:
            turns = arms_over_rtt(server.address)
    curves = {label: [middle(texts) for texts in row] for label, row in turns.items()}
    drawing = options.out.with_name(f"{options.out.stem}-arms.svg")
    drawing.write_text(chart(ROUND_TRIPS_MS, curves), encoding="utf-8")
    page = PAGE.format(
        tokens=TOKENS,
        turns=network_grid.TURNS,
        taught=network_grid.TAUGHT,
        arm_turns=network_arms.TURNS,
        environment=environment(),
        arms=arms_table(curves),
        alone=run_ahead_line(turns),
        bytes=bytes_line(curves),
        chart=drawing.name,
        target_ms=target_ms,
        lengths=", ".join(map(str, LENGTHS)),
        ahead=MOST_AHEAD,
        worth=WORTH_TRYING,
        steps=", ".join(f"{made:.2f} ms for {ms:g}" for ms, made in steps.items()),
        verdicts=verdicts(measured),
        grid=grid_table(measured),
    )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
