"""What the server is doing, told to whoever asks its health: loading, serving, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]

from cloud_server.jobs import Clock
from cloud_server.metrics import PHASES, Metrics

logger = logging.getLogger(__name__)

_UP = health_pb2.HealthCheckResponse.SERVING
_DOWN = health_pb2.HealthCheckResponse.NOT_SERVING


class Stepping(Protocol):
    """Is what runs a model step by step on a thread of its own."""

    steps: int
    step_started_ns: int | None


class Lifecycle:
    """Answers the health service: the server is up while it serves and its models move.

    Asked by the name of a phase, it says SERVING of the one the server is in.
    """

    def __init__(self, service_name: str, metrics: Metrics) -> None:
        self.service = health.HealthServicer()
        self.phase = PHASES[0]
        self.is_stuck = False
        self._names = ("", service_name)
        self._metrics = metrics

    async def enter(self, phase: str) -> None:
        """Begins a phase, one of PHASES."""
        self.phase = phase
        await self._tell()

    async def watch(self, runners: Mapping[str, Stepping], limit_s: float, clock: Clock) -> None:
        """Takes the server down while a step of one of them runs for longer than `limit_s`.

        Runs for ever. The names of the runners are for the log.
        """
        stuck: set[str] = set()
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            for name, runner in runners.items():
                began_ns = runner.step_started_ns
                is_stuck = began_ns is not None and clock() - began_ns > limit_s * 1e9
                if is_stuck != (name in stuck):
                    stuck ^= {name}
                    how = "is stuck" if is_stuck else "has ended"
                    logger.error("watchdog %s step=%d %s", name, runner.steps, how)
            if self.is_stuck != bool(stuck):
                self.is_stuck = bool(stuck)
                await self._tell()

    async def _tell(self) -> None:
        up = self.phase == "serving" and not self.is_stuck
        for name in self._names:
            await self.service.set(name, _UP if up else _DOWN)
        for phase in PHASES:
            await self.service.set(phase, _UP if phase == self.phase else _DOWN)
        self._metrics.phase.state(self.phase)
