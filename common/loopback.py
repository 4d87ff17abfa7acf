"""Whether an address leads out of this machine."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """Says whether a host, by name or number, is this machine alone.

    A name is when every address it stands for is; one that stands for none is not.
    """
    host = host.strip("[]")
    try:
        return _is_loopback(host)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(number: str) -> bool:
    address = ip_address(number)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
