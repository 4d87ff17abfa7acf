"""What a client shows to a server, and what it asks of it: tokens and certificates."""

from __future__ import annotations

from dataclasses import dataclass, field

from common.config import SecuritySection
from common.credentials import Identity, read_authorities, read_identity, read_tokens
from common.errors import ConfigError
from common.loopback import is_loopback

SYSTEM = "system"
"""What security.tls_ca says for the authorities gRPC comes with."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Holds what is sent and trusted; `authorities` None, with TLS: those gRPC comes with."""

    is_tls: bool
    authorities: bytes | None
    identity: Identity | None
    metadata: tuple[tuple[str, str], ...] | None = field(repr=False)


def read_credentials(security: SecuritySection, host: str) -> ClientCredentials:
    """Reads the files that `security` names for calls to `host`.

    Raises ConfigError for a file that cannot be used, for a certificate without TLS to show it
    in, and for a token that would cross a network in clear, unless security.insecure says so.
    """
    is_tls = security.tls_ca is not None
    if security.tls_cert is not None and not is_tls:
        raise ConfigError(
            f"security.tls_cert = {security.tls_cert!r} is shown to a server over TLS, which is "
            "off; turn it on with security.tls_ca (--tls-ca), the authority of the server"
        )
    refuse_clear_token(security, host)
    authorities = None
    if security.tls_ca is not None and security.tls_ca != SYSTEM:
        authorities = read_authorities(security.tls_ca, "security.tls_ca")
    metadata = None
    if security.token_file is not None:
        token = read_tokens(security.token_file)[0]
        metadata = (("authorization", f"Bearer {token.secret}"),)
    return ClientCredentials(is_tls, authorities, read_identity(security), metadata)


def refuse_clear_token(security: SecuritySection, host: str) -> None:
    """Raises ConfigError where a token would leave this machine without TLS."""
    if security.token_file is None or security.tls_ca is not None or security.insecure:
        return
    if not is_loopback(host):
        raise ConfigError(
            f"security.token_file = {security.token_file!r}: its token would cross the network to "
            f"{host} in clear; turn TLS on with security.tls_ca (--tls-ca), or set "
            "security.insecure=true"
        )
