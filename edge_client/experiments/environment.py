"""What a run ran on: enough to repeat it, and nothing that names the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.lm.precision import dtype_name
from common.machine.granted import granted_cores, granted_memory
from common.machine.usage import PREFIX
from common.types import ServerInfo
from edge_client.drafter import EdgeModel

PACKAGES = (
    *("outrider", "torch", "transformers", "tokenizers", "grpcio", "protobuf", "numpy"),
    *("sacrebleu", "rouge-score"),
)
_GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """States what a model is; `checkpoint_dtype` is that of the weights as stored."""

    name: str
    fingerprint: str
    dtype: str
    cache_dtype: str | None = None
    checkpoint_dtype: str | None = None


def describe_environment(
    *,
    config: Config,
    precision: Mapping[str, str],
    draft: ModelFacts | None,
    server: ServerInfo | None,
    device: str = "cpu",
    link: str | None = None,
) -> dict[str, Any]:
    """Describes this end, its model, the server's end and its model, and the configuration.

    `precision` are the settings read back from torch on this end, `device` where
    the draft model runs, `link` the profile of the relay between the ends.
    """
    return {
        "edge": {
            "versions": {"python": platform.python_version()} | _versions(),
            "os": platform.system(),
            "architecture": platform.machine(),
            "cpu_model": cpu_model(),
            "cores": granted_cores(),
            "memory": granted_memory(),
            "device": device,
            "precision": dict(precision),
        },
        "draft_model": None if draft is None else asdict(draft),
        "target_model": None if server is None else asdict(_target(server)),
        "server": None if server is None else _server(server),
        "link": link,
        "git": git_state(Path(__file__)),
        "configuration": config.model_dump(mode="json"),
    }


def describe_bench(
    config: Config, model: EdgeModel, server: ServerInfo | None, link: str | None = None
) -> dict[str, Any]:
    """Describes what a command that drafts with `model` and asks `server` runs on."""
    loaded, dtype = model.loaded, dtype_name(model.dtype)
    return describe_environment(
        config=config,
        precision=model.precision.settings,
        draft=ModelFacts(
            name=loaded.short_name,
            fingerprint=loaded.model_fingerprint,
            dtype=dtype,
            cache_dtype=dtype_name(model.cache.dtype),
            checkpoint_dtype=loaded.checkpoint_dtype,
        ),
        server=server,
        device=str(loaded.device),
        link=link,
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Returns the processor's name, None where it is not told."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None


def git_state(file: Path) -> dict[str, Any] | None:
    """Returns commit and whether files differ from it; None unless git tracks `file`."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=file.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str | None]:
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _target(server: ServerInfo) -> ModelFacts:
    return ModelFacts(
        name=server.model_name,
        fingerprint=server.model_fingerprint,
        dtype=server.dtype,
        cache_dtype=server.cache_dtype,
        checkpoint_dtype=server.checkpoint_dtype,
    )


def _server(server: ServerInfo) -> dict[str, Any]:
    return {
        "version": server.server_version,
        "protocol_version": server.protocol_version,
        "device": server.device,
        "precision": dict(server.precision),
        "environment": {
            name: text
            for name, text in server.environment.items()
            if not name.startswith(PREFIX)  # of the moment, and no part of what it runs on
        },
        "context_length": server.context_length,
        "draft_model": {
            "name": server.draft_model_name,
            "fingerprint": server.draft_model_fingerprint,
        }
        if server.draft_model_name
        else None,
        "limits": {
            "max_sessions": server.max_sessions,
            "max_draft_tokens": server.max_draft_tokens,
            "token_budget": server.token_budget,
            "cache_tokens": server.cache_tokens,
            "max_message_bytes": server.max_message_bytes,
        },
    }
