"""Token files and PEM files, read and checked before anything depends on them.

Nothing here puts a token or a key into a message: a wrong line is named by its number.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from common.config import SecuritySection
from common.errors import ConfigError

LEAST_TOKEN_CHARACTERS = 16
_TOKEN_FILE = "security.token_file"
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """Is a bearer token and the name of the client it stands for, None where none was given."""

    name: str | None
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """Is a certificate chain and its private key, in PEM."""

    chain: bytes
    key: bytes = field(repr=False)


def read_tokens(path: str) -> tuple[Token, ...]:
    """Reads a token file: `NAME TOKEN` or `TOKEN` a line; blank lines and `#` lines say nothing.

    Raises ConfigError naming the line that is neither, and where no token is left.
    """
    try:
        text = _read(path, _TOKEN_FILE).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{_TOKEN_FILE} = {path!r} is no text; write NAME TOKEN a line") from None
    tokens = tuple(
        _token(line.split(), f"{_TOKEN_FILE} = {path!r}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not tokens:
        raise ConfigError(
            f"{_TOKEN_FILE} = {path!r} holds no token; write NAME TOKEN a line "
            "(`openssl rand -hex 32` makes a token)"
        )
    return tokens


def _token(words: list[str], where: str) -> Token:
    if len(words) > 2:
        raise ConfigError(
            f"{where}: {len(words)} words; write NAME TOKEN or TOKEN, with no white space in either"
        )
    name, secret = words if len(words) == 2 else (None, words[0])
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: the name is not of at most 64 letters, digits and . _ - @; write NAME TOKEN"
        )
    if not (secret.isascii() and secret.isprintable()) or secret.startswith("#"):
        raise ConfigError(
            f"{where}: a token is of printable ASCII and does not start with #; "
            "`openssl rand -hex 32` makes one"
        )
    if len(secret) < LEAST_TOKEN_CHARACTERS:
        raise ConfigError(
            f"{where}: a token of {len(secret)} characters can be guessed; it takes at least "
            f"{LEAST_TOKEN_CHARACTERS} (`openssl rand -hex 32` makes one)"
        )
    return Token(name, secret)


def read_identity(security: SecuritySection) -> Identity | None:
    """Reads this process's certificate and key, None where none is configured.

    Raises ConfigError for files that are missing, no PEM, or do not belong together.
    """
    if security.tls_cert is None or security.tls_key is None:
        return None
    identity = Identity(
        _read(security.tls_cert, "security.tls_cert"), _read(security.tls_key, "security.tls_key")
    )
    _check_pem("security.tls_cert", security.tls_cert, "CERTIFICATE", identity.chain)
    _check_pem("security.tls_key", security.tls_key, "PRIVATE KEY", identity.key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            security.tls_cert, security.tls_key, password=""
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"security.tls_cert = {security.tls_cert!r} and security.tls_key = "
            f"{security.tls_key!r} are no certificate and its key ({_reason(error)}); "
            "name two that were made together, the key without a passphrase"
        ) from None
    return identity


def read_authorities(path: str, key: str) -> bytes:
    """Reads the certificates of authorities; `key` names where `path` was configured.

    Raises ConfigError for a file that is missing or holds no certificate.
    """
    authorities = _read(path, key)
    _check_pem(key, path, "CERTIFICATE", authorities)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{key} = {path!r} holds no readable certificate ({_reason(error)}); "
            "name the PEM file of the authority"
        ) from None
    return authorities


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{key} = {path!r} cannot be read: {error.strerror}; name a file this process may read"
        ) from None


def _check_pem(key: str, path: str, kind: str, content: bytes) -> None:
    if not re.search(rb"-----BEGIN [A-Z ]*" + kind.encode() + b"-----", content):
        raise ConfigError(
            f"{key} = {path!r} holds no `-----BEGIN {kind}-----`; name a PEM file with one"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
