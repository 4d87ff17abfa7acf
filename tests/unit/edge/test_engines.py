"""A measurement begins when both of the server's models run as they go on running."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge_client import engines
from edge_client.app import Assembly
from edge_client.engines import ServerEngines, server_engines
from tests.unit.edge.pair import server_info


def told_by_a_server(*environments: dict[str, str]) -> ServerEngines:
    left = iter(environments)
    cloud = SimpleNamespace(info=lambda: server_info(environment=next(left)))
    found = server_engines(cast(Assembly, SimpleNamespace(cloud=cloud)))
    assert not list(left)
    return found


def test_it_waits_until_target_and_draft_are_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "POLL_S", 0)
    found = told_by_a_server(
        {"engine": "compiling", "draft_engine": "compiling"},
        {"engine": "compiled", "draft_engine": "compiling"},
        {"engine": "compiled", "draft_engine": "kernels"},
    )
    assert found == ServerEngines(target="compiled", draft="kernels")
    assert capsys.readouterr().err.count("waiting for the server") == 1


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_what_a_server_does_not_tell_is_not_known(engine: str) -> None:
    assert told_by_a_server({"engine": engine}) == ServerEngines(target=engine)
    assert told_by_a_server({}) == ServerEngines()


def test_without_a_server_nothing_is_told() -> None:
    parts: Any = SimpleNamespace(cloud=None)
    assert server_engines(parts) == ServerEngines()
