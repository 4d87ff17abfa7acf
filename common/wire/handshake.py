"""Whether two ends fit together."""

from __future__ import annotations

from common.errors import HandshakeError, PrecisionError
from common.types import Peer


def check_handshake(client: Peer, server: Peer) -> None:
    """Refuses two ends that do not fit together; a field the client left empty is not checked.

    Raises HandshakeError, or PrecisionError for the dtype, naming both values.
    """
    ours, theirs = server.protocol_version, client.protocol_version
    if theirs and theirs.split(".")[0] != ours.split(".")[0]:
        raise HandshakeError(
            f"protocol version: client {theirs}, server {ours}; install the same major version"
        )
    if client.dtype and client.dtype != server.dtype:
        raise PrecisionError(
            f"precision: client {client.dtype}, server {server.dtype}; set edge.dtype and "
            "cloud.dtype to the same value"
        )
    if (
        client.tokenizer_fingerprint
        and client.tokenizer_fingerprint != server.tokenizer_fingerprint
    ):
        raise HandshakeError(
            f"tokenizer: client {client.tokenizer_fingerprint[:12]} ({client.vocab_size} entries), "
            f"server {server.tokenizer_fingerprint[:12]} ({server.vocab_size} entries); "
            "use a draft model trained with the target's tokenizer"
        )
    if client.model_fingerprint and client.model_fingerprint != server.model_fingerprint:
        raise HandshakeError(
            f"target: the client's text began with {client.model_fingerprint[:12]}, this server "
            f"has {server.model_fingerprint[:12]}; serve the same model at every address"
        )
