"""A relay in a process of its own, for as long as a bench needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import UnavailableError
from edge_client.relay.profiles import profile


@contextmanager
def linked(name: str, server: str) -> Iterator[str]:
    """Starts `outrider-link` with a profile in front of a server and yields the link's address.

    Raises UsageError for a profile there is not, UnavailableError when the relay does not start.
    """
    profile(name)
    command = [sys.executable, "-m", "edge_client.relay.cli", "--listen", "127.0.0.1:0"]
    command += ["--to", server, "--profile", name]
    # A session of its own, so that Ctrl-C reaches the bench first, which ends what it began.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as relay:
        assert relay.stdout is not None
        try:
            ready = relay.stdout.readline().strip()
            if not ready.startswith("READY link="):
                raise UnavailableError(f"the relay for --link {name} did not start")
            yield ready.removeprefix("READY link=")
        finally:
            relay.terminate()
