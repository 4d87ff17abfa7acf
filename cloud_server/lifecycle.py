"""What the server is doing, told to whoever asks its health: loading, serving, draining."""

from __future__ import annotations

import asyncio
import logging

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]

from cloud_server.engine import Engine
from cloud_server.jobs import Clock
from cloud_server.metrics import PHASES, Metrics

logger = logging.getLogger(__name__)

_UP = health_pb2.HealthCheckResponse.SERVING
_DOWN = health_pb2.HealthCheckResponse.NOT_SERVING


class Lifecycle:
    """Answers the health service: the server is up while it serves and its engine moves.

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

    async def watch(self, engine: Engine, limit_s: float, clock: Clock) -> None:
        """Takes the server down while one step runs for longer than `limit_s`; runs for ever."""
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            began_ns = engine.step_started_ns
            is_stuck = began_ns is not None and clock() - began_ns > limit_s * 1e9
            if is_stuck != self.is_stuck:
                self.is_stuck = is_stuck
                logger.error(
                    "watchdog step=%d %s", engine.steps, "is stuck" if is_stuck else "has ended"
                )
                await self._tell()

    async def _tell(self) -> None:
        up = self.phase == "serving" and not self.is_stuck
        for name in self._names:
            await self.service.set(name, _UP if up else _DOWN)
        for phase in PHASES:
            await self.service.set(phase, _UP if phase == self.phase else _DOWN)
        self._metrics.phase.state(self.phase)
