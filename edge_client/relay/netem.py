"""A link in the words of Linux's netem, one line a direction, for `deploy/netem.sh`.

python -m edge_client.relay.netem --profile 4g-lte
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence

from common.errors import OutriderError, UsageError
from edge_client.relay.profiles import PROFILES, bytes_per_second, profile, seconds, symmetric
from edge_client.relay.shape import PACKET, Shape

NO_LIMIT = 10e9 / 8
"""A rate in bytes a second that holds nobody up; with a rate netem's jitter keeps the order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints `up ...` and `down ...`; returns 0, or an error's code (common/errors.py)."""
    options = _parser().parse_args(argv)
    try:
        lossy = "" if options.loss_burst is None else loss(options.loss_burst)
        for way, shape in zip(("up", "down"), _shapes(options), strict=True):
            print(f"{way} {netem(shape)}{lossy}")
    except OutriderError as error:
        print(f"netem: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def netem(shape: Shape) -> str:
    """Returns netem's parameters: delay and jitter around the median, rate, and room.

    netem draws the delay of each packet evenly over ±jitter, which is chosen so that a tenth of
    them lies outside the profile's p10 and p90 each.
    """
    delays = shape.delays
    middle = delays.at(0.5)
    jitter = min(middle, (delays.at(0.9) - delays.at(0.1)) / 1.6)
    rate = NO_LIMIT if shape.rate is None else shape.rate
    # netem's limit counts what is on its way as well as what waits.
    room = math.ceil((shape.buffer + rate * (middle + jitter)) / PACKET)
    told = f"delay {round(middle * 1e6)}us"
    if jitter:
        told += f" {round(jitter * 1e6)}us"
    return f"{told} rate {round(rate * 8)}bit limit {room}"


def loss(text: str) -> str:
    """Reads P:R, percent of packets with which a burst of losses begins and ends (Gilbert)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if found is None or not all(0 < float(share) <= 100 for share in found.groups()):
        raise UsageError(
            f"--loss-burst {text!r}: write BEGIN:END in percent, for example 0.1:20, each above 0"
        )
    return f" loss gemodel {found[1]}% {found[2]}%"


def _shapes(options: argparse.Namespace) -> tuple[Shape, Shape]:
    by_hand = (options.rtt, options.jitter, options.up, options.down)
    if options.profile is not None:
        if any(given is not None for given in by_hand):
            raise UsageError("--profile says all of a link; leave out what describes it by hand")
        return profile(options.profile)
    if all(given is None for given in by_hand):
        raise UsageError("nothing says which link; give --profile, or --rtt, --up, --down")
    return symmetric(
        0.0 if options.rtt is None else seconds(options.rtt),
        0.0 if options.jitter is None else seconds(options.jitter),
        None if options.up is None else bytes_per_second(options.up),
        None if options.down is None else bytes_per_second(options.down),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netem", epilog=f"Profiles: {', '.join(PROFILES)}.", allow_abbrev=False
    )
    parser.add_argument("--profile", metavar="NAME")
    for flag, unit in (("rtt", "TIME"), ("jitter", "TIME"), ("up", "RATE"), ("down", "RATE")):
        parser.add_argument(f"--{flag}", metavar=unit)
    parser.add_argument("--loss-burst", metavar="BEGIN:END")
    return parser


if __name__ == "__main__":
    sys.exit(main())
