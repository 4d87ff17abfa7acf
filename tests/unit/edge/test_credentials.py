"""What a client sends and trusts, and what it will not send in clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import SecuritySection
from common.errors import ConfigError
from edge_client.credentials import read_credentials

SECRET = "0123456789abcdef"


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    file = tmp_path / "tokens"
    file.write_text(f"alice {SECRET}\nbob fedcba9876543210\n")
    return str(file)


def test_nothing_configured_is_nothing_sent() -> None:
    found = read_credentials(SecuritySection(), "far.away")
    assert (found.is_tls, found.identity, found.metadata) == (False, None, None)


def test_the_first_token_is_sent_and_not_shown(tokens: str) -> None:
    found = read_credentials(SecuritySection(token_file=tokens), "127.0.0.1")
    assert found.metadata == (("authorization", f"Bearer {SECRET}"),)
    assert SECRET not in repr(found)


def test_a_token_does_not_leave_the_machine_in_clear(tokens: str, certificates: Path) -> None:
    security = SecuritySection(token_file=tokens)
    with pytest.raises(ConfigError, match=r"cross the network to 10.0.0.7 in clear.*--tls-ca"):
        read_credentials(security, "10.0.0.7")
    said = security.model_copy(update={"insecure": True})
    over_tls = security.model_copy(update={"tls_ca": str(certificates / "ca.pem")})
    for allowed in (said, over_tls):
        assert read_credentials(allowed, "10.0.0.7").metadata is not None


def test_system_stands_for_the_authorities_grpc_comes_with(certificates: Path) -> None:
    found = read_credentials(SecuritySection(tls_ca="system"), "far.away")
    assert (found.is_tls, found.authorities) == (True, None)
    own = read_credentials(SecuritySection(tls_ca=str(certificates / "ca.pem")), "far.away")
    assert (own.is_tls, own.authorities) == (True, (certificates / "ca.pem").read_bytes())


def test_a_certificate_without_tls_is_refused(certificates: Path) -> None:
    security = SecuritySection(
        tls_cert=str(certificates / "client.pem"), tls_key=str(certificates / "client.key")
    )
    with pytest.raises(ConfigError, match=r"client.pem' is shown to a server over TLS.*tls_ca"):
        read_credentials(security, "127.0.0.1")
