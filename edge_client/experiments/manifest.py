"""run.json: what a run is, written before anything is measured, so that it can be taken up again.

A run is taken up only by the same plan on the same environment: numbers of two machines,
two versions or two configurations never stand in one directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UsageError
from edge_client.experiments.differences import differences

MANIFEST = "run.json"
_SHOWN = 5
_SAID_ELSEWHERE = "environment.configuration.decoding.seed"  # plan.sampling has the one in use


@dataclass(frozen=True, slots=True)
class Manifest:
    """Is what a run was started as; `resumed_at` are the times it was taken up again, in UTC."""

    run_id: str
    started_at: str
    seed: int
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    resumed_at: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Returns the manifest as the text of a file."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def taken_up(self, now: Manifest, directory: Path) -> Manifest:
        """Returns this manifest with the time of `now`, which must describe the same run.

        Raises UsageError naming what differs.
        """
        there = {"plan": self.plan, "environment": self.environment}
        here = json.loads(json.dumps({"plan": now.plan, "environment": now.environment}))
        found = [d for d in differences(there, here) if d[0] != _SAID_ELSEWHERE]
        if found:
            said = "; ".join(f"{name}: {was} then, {is_} now" for name, was, is_ in found[:_SHOWN])
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise UsageError(
                f"--resume {directory} was started under other conditions, and runs are never "
                f"mixed: {said}{more}; restore them, or start a new run with --out"
            )
        return replace(self, resumed_at=(*self.resumed_at, now.started_at))


def read_manifest(directory: Path) -> Manifest:
    """Reads run.json; raises UsageError where there is none."""
    file = directory / MANIFEST
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Manifest(**(values | {"resumed_at": tuple(values["resumed_at"])}))
    except OSError as error:
        raise UsageError(
            f"--resume {directory}: {file.name} cannot be read ({error.strerror}); name the "
            f"directory of a run that was interrupted"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"--resume {directory}: {file.name} is not that of a run ({error}); start a new run "
            f"with --out"
        ) from None
