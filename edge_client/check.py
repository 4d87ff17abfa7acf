"""`outrider-edge check`: one audited forward, and the precisions found in it."""

from __future__ import annotations

from common.config import Config
from common.errors import PrecisionError
from common.lm.check import check_precision
from edge_client.drafter import EdgeModel
from edge_client.terminal import warn_of_dtypes


def check(config: Config, *, draft: str) -> int:
    """Prints what was found; exits with PrecisionError's code on a tensor of another dtype."""
    model = EdgeModel.configured(draft, config)
    found = check_precision(model, model.precision)
    print(found.text)
    warn_of_dtypes(config.edge.dtype)
    if not found.passed:
        raise PrecisionError(
            f"{draft} does not run in {config.edge.dtype} throughout; the list above says where"
        )
    return 0
