"""`deploy/docker/healthy.py`: what a container's probe says of a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.integration.processes import ENVIRONMENT, Server, serving
from tests.models import Pair

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "deploy" / "docker" / "healthy.py"


def probe(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(PROBE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stderr


def test_a_server_that_serves_is_healthy_and_none_is_not(server: Server) -> None:
    assert probe(server.address) == (0, "")
    assert probe("127.0.0.1:1") == (1, "127.0.0.1:1: UNAVAILABLE\n")


def test_a_server_with_tls_and_tokens_is_asked_with_them(
    tiny_pair: Pair, certificates: Path
) -> None:
    with serving(
        tiny_pair.target,
        *("--set", f"security.tls_cert={certificates}/server.pem"),
        *("--set", f"security.tls_key={certificates}/server.key"),
        *("--set", f"security.token_file={certificates}/tokens"),
    ) as guarded:
        trusting = ["--tls-ca", f"{certificates}/ca.pem"]
        known = ["--token-file", f"{certificates}/tokens"]
        assert probe(guarded.address, *trusting, *known) == (0, "")
        assert probe(guarded.address, *trusting) == (1, f"{guarded.address}: UNAUTHENTICATED\n")
