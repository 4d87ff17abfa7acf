"""The tokens a server knows, as digests: whose a token is, and the file read again."""

from __future__ import annotations

import hashlib
import hmac
import logging

from common.credentials import read_tokens
from common.errors import ConfigError

logger = logging.getLogger(__name__)

_SHORT = 8  # digits of a digest that stand for a client without a name


class Credentials:
    """Holds the sha256 digests of a token file, each with the name of its client."""

    def __init__(self, path: str) -> None:
        """Reads the file; raises ConfigError as `read_tokens` does, and for a token that is twice.

        Several tokens may have one name: the old and the new one while they are changed.
        """
        self._path = path
        self._clients = _read(path)

    def __len__(self) -> int:
        return len(self._clients)

    def client(self, secret: str) -> str | None:
        """Returns the name of the client whose token this is, None for an unknown token.

        Every entry is compared, each in constant time: how long it takes says nothing of what
        a token begins with, or of where it stands.
        """
        asked = _digest(secret)
        found = None
        for digest, name in self._clients:
            if hmac.compare_digest(digest, asked):
                found = name
        return found

    def reload(self) -> None:
        """Reads the file again; one that cannot be used changes nothing and is logged."""
        try:
            self._clients = _read(self._path)
        except ConfigError as error:
            logger.error("the tokens stay as they were: %s", error)
        else:
            logger.info("%s read again; tokens in it: %d", self._path, len(self))


def _read(path: str) -> tuple[tuple[bytes, str], ...]:
    clients: dict[bytes, str] = {}
    for token in read_tokens(path):
        digest = _digest(token.secret)
        name = token.name or digest.hex()[:_SHORT]
        if digest in clients:
            raise ConfigError(
                f"security.token_file = {path!r}: {clients[digest]} and {name} have the same "
                "token; give each client its own"
            )
        clients[digest] = name
    return tuple(clients.items())


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
