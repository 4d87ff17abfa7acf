"""What a process has used so far: processor time, memory, energy, and of a GPU.

What the machine does not tell is None. Energy is that of the whole package or GPU, whoever
used it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "usage."
BOOT = "boot"
"""Under this name a server tells which boot of which machine it runs in, as a digest."""

_POWERCAP = Path("/sys/class/powercap")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Usage:
    """Is what a process has used since it began.

    `cpu_s` counts user and system time of all threads; `energy_j` is RAPL's of all packages and
    wraps; `gpu_memory_bytes` is this process's peak on its GPU; `gpu_utilization` is that of the
    GPU in the last moment, from 0 to 1; `gpu_energy_j` NVML's since the driver was loaded.
    """

    cpu_s: float | None = None
    peak_rss_bytes: float | None = None
    energy_j: float | None = None
    gpu_memory_bytes: float | None = None
    gpu_utilization: float | None = None
    gpu_energy_j: float | None = None

    def to_texts(self) -> dict[str, str]:
        """Returns what is known, as names with a prefix and numbers in words."""
        known = dataclasses.asdict(self).items()
        return {PREFIX + name: repr(float(value)) for name, value in known if value is not None}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> Usage:
        """Reads what `to_texts` wrote; what is missing or no number is not known."""
        found = {f.name: _number(texts.get(PREFIX + f.name)) for f in dataclasses.fields(cls)}
        return cls(**found)


def read_usage(device: str = "cpu", powercap: Path = _POWERCAP) -> Usage:
    """Reads what this process has used; `device` is torch's name of where its model runs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1 if sys.platform == "darwin" else 1024
    gpu = _gpu(device) if device.startswith("cuda") else {}
    return Usage(
        cpu_s=used.ru_utime + used.ru_stime,
        peak_rss_bytes=used.ru_maxrss * scale,
        energy_j=package_energy_j(powercap),
        **gpu,
    )


def package_energy_j(powercap: Path = _POWERCAP) -> float | None:
    """Returns RAPL's counters of all packages added up, in joules; None where unreadable."""
    total = None
    for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:
            continue  # a part of a package, which the package counts already
        try:
            total = (total or 0.0) + int((zone / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            return None
    return total


def boot(boot_id: Path = _BOOT_ID) -> str | None:
    """Returns a digest of this boot of this machine, which names neither."""
    try:
        return hashlib.sha256(boot_id.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def _gpu(device: str) -> dict[str, float | None]:
    import torch

    index = torch.device(device).index or 0
    known: dict[str, float | None] = {
        "gpu_memory_bytes": float(torch.cuda.max_memory_reserved(index))
    }
    try:
        nvml: Any = importlib.import_module("pynvml")  # nvidia-ml-py, the extra `gpu`
        nvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
        known["gpu_utilization"] = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        known["gpu_energy_j"] = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:  # whatever NVML lacks here, the rest is still known
        return known
    return known


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
