"""`deploy/make_certs.sh`: what it writes, what it will not write over, and what it prints."""

from __future__ import annotations

import shlex
import stat
import subprocess
from pathlib import Path

import pytest

import cloud_server.cli
import edge_client.cli
import edge_client.parser

SCRIPT = Path(__file__).parents[2] / "deploy" / "make_certs.sh"
SECRETS = {"ca.key", "server.key", "client.key", "tokens"}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_keys_and_tokens_are_for_their_owner_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "certs"
    assert make(str(out)).returncode == 0
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == SECRETS
    assert set(modes) == SECRETS | {"ca.pem", "server.pem", "client.pem"}


def test_the_certificate_is_for_every_name_asked_for(tmp_path: Path) -> None:
    assert make(str(tmp_path), "gpu-node", "10.0.0.7", "2001:db8::7").returncode == 0
    command = ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in"]
    command.append(str(tmp_path / "server.pem"))
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("DNS:localhost", "Address:127.0.0.1", "Address:0:0:0:0:0:0:0:1"):
        assert name in names
    for name in ("DNS:gpu-node", "Address:10.0.0.7", "Address:2001:DB8:0:0:0:0:0:7"):
        assert name in names


def test_two_runs_make_two_tokens(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert make(str(tmp_path / name)).returncode == 0
    first, second = ((tmp_path / name / "tokens").read_text() for name in ("a", "b"))
    assert first != second
    assert len(first.split()[1]) == 64


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "client.key").write_text("mine")
    done = make(str(tmp_path))
    assert done.returncode == 2
    assert "client.key is there already" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["client.key"]
    assert (tmp_path / "client.key").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: deploy/make_certs.sh OUT_DIR [HOST...]"),
        (["OUT", "a,IP:1.2.3.4"], "'a,IP:1.2.3.4' is neither a host name nor an address"),
        (["OUT", "999.1.1.1"], "999.1.1.1"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = make(*(str(tmp_path) if word == "OUT" else word for word in arguments))
    assert done.returncode != 0
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_commands_it_prints_are_commands_of_ours(tmp_path: Path) -> None:
    printed = make(str(tmp_path), "gpu-node").stdout.replace("\\\n", " ")
    server, client = (
        shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  outrider-")
    )
    served = cloud_server.cli._configuration(cloud_server.cli._parser().parse_args(server))
    asked = edge_client.cli._configuration(edge_client.parser.build_parser().parse_args(client))
    assert served.security.tls_client_ca == asked.security.tls_ca == str(tmp_path / "ca.pem")
    assert served.security.token_file == asked.security.token_file == str(tmp_path / "tokens")
    assert "gpu-node:50051" in client
