"""`outrider-link`: puts a network link between an edge and a cloud on one machine."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from common.errors import OutriderError, UnavailableError, UsageError
from edge_client.relay.profiles import (
    PROFILES,
    bytes_per_second,
    profile,
    read_trace,
    seconds,
    symmetric,
)
from edge_client.relay.relay import Relay
from edge_client.relay.shape import Shape, Stalls

PROGRAM = "outrider-link"


def main(argv: Sequence[str] | None = None) -> int:
    """Relays until SIGTERM or Ctrl-C; returns 0 then, else an error's code (common/errors.py)."""
    options = _parser().parse_args(argv)
    try:
        up, down = _shapes(options)
        _relay(options, up, down)
    except OutriderError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _relay(options: argparse.Namespace, up: Shape, down: Shape) -> None:
    listen, target = _address("--listen", options.listen), _address("--to", options.to)
    try:
        relay = Relay(listen, target, up, down, options.seed)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {options.listen}: {error.strerror}; choose another --listen"
        ) from None
    stopped = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    relay.start()
    print(f"READY link={relay.address[0]}:{relay.address[1]}", flush=True)
    stopped.wait()
    relay.close()
    carried = relay.carried
    print(
        f"{PROGRAM}: {carried.connections} connections, {carried.up} bytes up, "
        f"{carried.down} bytes down",
        file=sys.stderr,
    )


def _shapes(options: argparse.Namespace) -> tuple[Shape, Shape]:
    by_hand = (options.rtt, options.jitter, options.up, options.down, options.trace)
    if options.profile is not None:
        if any(given is not None for given in by_hand):
            raise UsageError("--profile says all of a link; leave out what describes it by hand")
        shapes = profile(options.profile)
    else:
        shapes = symmetric(
            0.0 if options.rtt is None else seconds(options.rtt),
            0.0 if options.jitter is None else seconds(options.jitter),
            None if options.up is None else bytes_per_second(options.up),
            None if options.down is None else bytes_per_second(options.down),
        )
    if options.trace is not None:
        if options.up or options.down:
            raise UsageError("a trace is a rate already; leave out --up and --down")
        files = [read_trace(file) for file in options.trace]
        if len(files) > 2:
            raise UsageError("--trace takes one file for both ways, or one up and one down")
        shapes = (
            dataclasses.replace(shapes[0], trace=files[0]),
            dataclasses.replace(shapes[1], trace=files[-1]),
        )
    stalls = None if options.loss_burst is None else _stalls(options.loss_burst)
    up, down = (
        dataclasses.replace(shape, stalls=stalls, buffer=1024 * options.buffer) for shape in shapes
    )
    return up, down


def _stalls(text: str) -> Stalls:
    every, separator, lasting = text.partition(":")
    if not separator:
        raise UsageError(f"--loss-burst {text!r}: write EVERY:FOR, for example 5s:300ms")
    stalls = Stalls(seconds(every), seconds(lasting))
    if not stalls.every_s:
        raise UsageError(f"--loss-burst {text!r}: bursts every 0 s leave no link")
    return stalls


def _address(flag: str, text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{flag} {text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A TCP relay that behaves like a network link.",
        epilog=f"Profiles: {', '.join(PROFILES)}.",
    )
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0: any free one")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="the server behind it")
    parser.add_argument("--profile", metavar="NAME", help="a built-in link, all of it")
    parser.add_argument("--rtt", metavar="TIME", help="round trip of the idle link, e.g. 50ms")
    parser.add_argument("--jitter", metavar="TIME", help="the round trip varies by ± this")
    parser.add_argument("--up", metavar="RATE", help="e.g. 5mbit; no limit when left out")
    parser.add_argument("--down", metavar="RATE", help="e.g. 20mbit; no limit when left out")
    parser.add_argument(
        "--trace",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="mahimahi packet-delivery traces instead of rates: one for both ways, or up and down",
    )
    parser.add_argument(
        "--loss-burst",
        metavar="EVERY:FOR",
        help="each way stands still now and then, e.g. 5s:300ms (mean gap, length): what a burst "
        "of losses does to TCP",
    )
    parser.add_argument(
        "--buffer",
        type=int,
        default=256,
        metavar="KIB",
        help="of the bottleneck, each way (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of jitter and bursts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
