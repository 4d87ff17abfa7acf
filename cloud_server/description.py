"""What a server says of itself: model, precision, limits, and the machine it runs on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version

import torch

from common import PROTOCOL_VERSION
from common.config import CloudSection
from common.lm import precision
from common.lm.runner import LanguageModel
from common.machine.granted import granted_cores, granted_memory
from common.machine.usage import BOOT, boot
from common.types import ServerInfo


def describe(
    model: LanguageModel,
    cloud: CloudSection,
    policy: precision.PrecisionReport,
    draft: LanguageModel | None = None,
) -> ServerInfo:
    """States what this server is, as GetServerInfo answers it."""
    loaded = model.loaded
    environment = {name: version(name) for name in ("torch", "transformers", "grpcio", "protobuf")}
    return ServerInfo(
        protocol_version=PROTOCOL_VERSION,
        server_version=version("outrider"),
        model_name=loaded.short_name,
        model_fingerprint=loaded.model_fingerprint,
        tokenizer_fingerprint=loaded.tokenizer_fingerprint,
        vocab_size=loaded.vocab_size,
        dtype=precision.dtype_name(model.dtype),
        cache_dtype=precision.dtype_name(model.cache.dtype),
        checkpoint_dtype=loaded.checkpoint_dtype,
        device=_device_name(loaded.device),
        context_length=loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        max_sessions=cloud.max_sessions,
        max_draft_tokens=cloud.max_draft_tokens,
        token_budget=cloud.token_budget,
        cache_tokens=model.cache.capacity_tokens,
        max_message_bytes=cloud.max_message_bytes,
        idle_session_seconds=cloud.idle_session_seconds,
        precision=policy.settings,
        environment=environment
        | {
            "python": platform.python_version(),
            "threads": str(torch.get_num_threads()),
            "cores": str(_cores()),
            **_granted(),
            "platform": f"{sys.platform} {platform.machine()}",
        },
        draft_model_name="" if draft is None else draft.loaded.short_name,
        draft_model_fingerprint="" if draft is None else draft.loaded.model_fingerprint,
    )


def _granted() -> dict[str, str]:
    """Returns what this process may use, read back, and which boot it runs in; all in words."""
    cores, memory = granted_cores(), granted_memory()
    told = {
        "cores_granted": cores["granted"],
        "cores_enforced_by": cores["enforced_by"],
        "memory_granted_gib": memory["granted_gib"],
        "memory_enforced_by": memory["enforced_by"],
        BOOT: boot(),
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _cores() -> int | None:
    # Linux alone knows the cores of this process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
