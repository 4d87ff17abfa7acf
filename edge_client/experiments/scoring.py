"""How probable the target finds each text, asked when the run is over and no clock runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from edge_client.experiments.records import Record

TextNats = Callable[[Sequence[int], Sequence[int]], float | None]
"""Returns the target's negative log-likelihood of a whole output, in nats, at temperature 1
and untruncated; None when it cannot be had.

Called as (prompt_token_ids, output_token_ids).
"""


def score(
    records: Sequence[Record], text_nats: TextNats, advance: Callable[[], None]
) -> list[Record]:
    """Returns the records with `target_nll`; what several arms wrote alike is asked once.

    `advance` is called after each record.
    """
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float | None] = {}
    scored = []
    for record in records:
        prompt, output = record.prompt_token_ids or (), record.output_token_ids or ()
        if record.error is None and output:
            if (prompt, output) not in known:
                known[prompt, output] = text_nats(prompt, output)
            nats = known[prompt, output]
            if nats is not None:
                record = dataclasses.replace(record, target_nll=nats / len(output))
        scored.append(record)
        advance()
    return scored
