"""Who a call is from where no tokens are configured: the host at the other end."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_server.authentication import client_of


class Context:
    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:50123", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50123", "::1"),
        ("ipv6:[2001:db8::7]:50123", "2001:db8::7"),
        ("unix:", "unix"),
        ("unix:/run/outrider.sock", "unix"),
    ],
)
def test_without_tokens_a_client_is_its_host(peer: str, host: str) -> None:
    context: Any = Context(peer)
    assert client_of(context) == host
