"""Which servers may start: nothing beyond loopback without TLS and known clients, unless said."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_server.access import read_access
from cloud_server.cli import main
from common.config import Config, SecuritySection
from common.errors import ConfigError
from common.loopback import is_loopback

TLS = {"tls_cert": "server.pem", "tls_key": "server.key"}
MUTUAL = {**TLS, "tls_client_ca": "ca.pem"}
TOKEN = {"token_file": "tokens"}
BEYOND = ("0.0.0.0", "::", "10.0.0.7", "nonesuch.invalid")


@pytest.fixture
def folder(certificates: Path) -> Path:
    return certificates


def section(folder: Path, names: dict[str, str], insecure: bool = False) -> SecuritySection:
    files = {key: str(folder / name) for key, name in names.items()}
    return SecuritySection.model_validate({**files, "insecure": insecure})


@pytest.mark.parametrize("host", BEYOND)
@pytest.mark.parametrize(
    ("names", "missing", "present"),
    [
        ({}, ["TLS (", "known clients ("], []),
        (TLS, ["known clients ("], ["TLS ("]),
        (TOKEN, ["TLS ("], ["known clients ("]),
    ],
)
def test_beyond_loopback_it_takes_tls_and_known_clients(
    folder: Path, host: str, names: dict[str, str], missing: list[str], present: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_access(host, section(folder, names))
    message = str(caught.value)
    assert f"cloud.listen names {host}" in message
    assert "--insecure" in message
    assert all(part in message for part in missing)
    assert not any(part in message for part in present)


@pytest.mark.parametrize("names", [{**TLS, **TOKEN}, MUTUAL, {**MUTUAL, **TOKEN}])
def test_with_both_it_may_listen_anywhere(folder: Path, names: dict[str, str]) -> None:
    access = read_access("0.0.0.0", section(folder, names))
    assert access.tls is not None
    assert (access.credentials is not None) is ("token_file" in names)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_takes_nothing(folder: Path, host: str) -> None:
    access = read_access(host, SecuritySection())
    assert (access.tls, access.credentials) == (None, None)


def test_insecure_is_said_and_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_access("0.0.0.0", section(folder, {}, insecure=True))
    (message,) = caplog.messages
    assert message.startswith("listening on 0.0.0.0 without TLS")
    assert "and without known clients" in message


def test_by_default_both_listeners_are_on_loopback() -> None:
    cloud = Config().cloud
    for address in (cloud.listen, cloud.metrics_listen):
        assert is_loopback(address.rpartition(":")[0])
    assert cloud.listen != cloud.metrics_listen


@pytest.fixture
def hangup() -> Iterator[None]:
    """Puts back how this process takes a hangup, which a server that starts changes."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--listen", "0.0.0.0:0"], "cloud.listen names 0.0.0.0, which others can reach"),
        (["--listen", "[::]:0"], "cloud.listen names ::, which others can reach"),
        (["--listen", "0.0.0.0:0", "--insecure"], "no/such/model"),
        (["--set", "security.token_file=no/such/tokens"], "security.token_file = 'no/such/tokens'"),
        (
            ["--set", "security.tls_cert=no/such/cert", "--set", "security.tls_key=no/such/key"],
            "security.tls_cert = 'no/such/cert' cannot be read",
        ),
        (["--set", "security.tls_cert=no/such/cert"], "needs security.tls_key"),
        (["--listen", "127.0.0.1:0"], "no/such/model"),
    ],
)
def test_what_is_wrong_with_access_is_said_before_the_model_is_looked_at(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    anywhere = ["--metrics-listen", "127.0.0.1:0"]
    assert main(["serve", "--model", "no/such/model", *anywhere, *flags]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert message in found.err.splitlines()[-1]
