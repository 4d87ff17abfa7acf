"""Who may reach a server: its TLS, its tokens, and the refusal to listen to everybody."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc

from cloud_server.credentials import Credentials
from common.config import SecuritySection
from common.credentials import read_authorities, read_identity
from common.errors import ConfigError
from common.loopback import is_loopback

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Access:
    """Holds what is asked of who connects; None: nothing."""

    tls: grpc.ServerCredentials | None
    credentials: Credentials | None


def read_access(host: str, security: SecuritySection) -> Access:
    """Reads the files that `security` names for a server that listens on `host`.

    Raises ConfigError for a file that cannot be used, and for an address beyond loopback where
    calls would come in clear or from anybody, unless security.insecure says so.
    """
    access = Access(
        _tls(security), None if security.token_file is None else Credentials(security.token_file)
    )
    if not is_loopback(host):
        missing = []
        if access.tls is None:
            missing.append("TLS (security.tls_cert and security.tls_key)")
        if access.credentials is None and security.tls_client_ca is None:
            missing.append("known clients (security.token_file or security.tls_client_ca)")
        if missing and not security.insecure:
            raise ConfigError(
                f"cloud.listen names {host}, which others can reach, without "
                f"{' and without '.join(missing)}: set that, listen on 127.0.0.1, or say --insecure"
            )
        if missing:
            logger.warning("listening on %s without %s", host, " and without ".join(missing))
    return access


def _tls(security: SecuritySection) -> grpc.ServerCredentials | None:
    identity = read_identity(security)
    if identity is None:
        return None
    authorities = None
    if security.tls_client_ca is not None:
        authorities = read_authorities(security.tls_client_ca, "security.tls_client_ca")
    return grpc.ssl_server_credentials(
        [(identity.key, identity.chain)], authorities, require_client_auth=authorities is not None
    )
