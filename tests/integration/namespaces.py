"""Two hosts on one machine: network namespaces joined by a cable that can be cut."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

RATE = "512kbit"


class NotPermittedError(Exception):
    """Says which command this machine refused, and its words."""


@dataclass(frozen=True)
class Host:
    """Is a namespace with one end of the cable, and the address it has there."""

    name: str
    address: str
    device: str = "cable"

    @property
    def within(self) -> list[str]:
        """The words before a command that is to run on this host."""
        return ["ip", "netns", "exec", self.name]

    def set_link(self, state: str) -> None:
        """Cuts (`down`) or joins (`up`) the cable at this end."""
        _ip("-n", self.name, "link", "set", self.device, state)

    def retransmitted(self) -> int:
        """Returns how many TCP segments this host has sent again."""
        snmp = _run([*self.within, "cat", "/proc/net/snmp"])
        names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Joins two hosts for the length of a `with` block; raises NotPermittedError."""
    unique = os.getpid()
    hosts = (
        Host(f"outrider-cloud-{unique}", "10.77.0.1"),
        Host(f"outrider-edge-{unique}", "10.77.0.2"),
    )
    with ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
        ends = [["name", host.device, "netns", host.name] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.device)
            _ip("-n", host.name, "link", "set", "lo", "up")
            host.set_link("up")
            rate = ["tbf", "rate", RATE, "burst", "8kb", "latency", "400ms"]
            _run([*host.within, "tc", "qdisc", "add", "dev", host.device, "root", *rate])
        yield hosts


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotPermittedError(f"{command[0]} is not here; install iproute2") from None
    if done.returncode:
        raise NotPermittedError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
