"""Flags that several commands share, and what their values may be."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.config import Config
from edge_client.arms import ARM_NAMES


def shared_flags() -> argparse.ArgumentParser:
    """Holds the flags of every command."""
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML configuration")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        help="override one configuration key; may be repeated",
    )
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    return group


def server_flags() -> argparse.ArgumentParser:
    """Holds the flags that say where servers are and how they are reached."""
    group = argparse.ArgumentParser(add_help=False)
    listen = Config().cloud.listen
    group.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="may be repeated: when one fails, the text goes on at the next; "
        f"default: {listen} (cloud.listen); `edge` needs none",
    )
    group.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        help="for one whole text; default: as long as it takes (network.deadline_s)",
    )
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="PEM of the authorities to trust, or the word system; turns TLS on (security.tls_ca)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help="the first token in it is sent with every call (security.token_file)",
    )
    return group


def draft_flags(required: bool = True) -> argparse.ArgumentParser:
    """Holds the flag that names the draft model."""
    group = argparse.ArgumentParser(add_help=False)
    group.add_argument(
        "--draft",
        required=required,
        metavar="PATH_OR_HUB_ID",
        help="draft model" if required else "draft model (experiment.draft)",
    )
    return group


def decoding_flags() -> argparse.ArgumentParser:
    """Holds the flags named like the keys of the section `decoding`, which has their defaults."""
    group = argparse.ArgumentParser(add_help=False)
    default = Config().decoding

    def help_for(key: str, meaning: str) -> str:
        return f"{meaning} (default: {getattr(default, key)}; decoding.{key})"

    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=help_for("max_new_tokens", "at most so many"),
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help=help_for("temperature", "0 is greedy")
    )
    group.add_argument("--top-p", type=float, metavar="P", help=help_for("top_p", "1 is all"))
    group.add_argument("--top-k", type=int, metavar="K", help=help_for("top_k", "0 is all"))
    group.add_argument("--min-p", type=float, metavar="P", help=help_for("min_p", "0 is all"))
    for kind, what in (
        ("repetition", "over prompt and output, 1 is none"),
        ("presence", "over the output, once a token, 0 is none"),
        ("frequency", "over the output, each time, 0 is none"),
    ):
        key = f"{kind}_penalty"
        group.add_argument(f"--{kind}-penalty", type=float, metavar="X", help=help_for(key, what))
    group.add_argument(
        "--seed", type=int, metavar="S", help="default: drawn and reported (decoding.seed)"
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text; may be repeated (decoding.stop)",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="go on after an end-of-sequence token (decoding.ignore_eos)",
    )
    return group


def arms(text: str) -> tuple[str, ...]:
    """Reads names of arms, with commas between."""
    names = tuple(text.split(","))
    for name in names:
        if name not in ARM_NAMES:
            raise argparse.ArgumentTypeError(
                f"there is no arm {name!r}; choose from {','.join(ARM_NAMES)}"
            )
    return names


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """Reads a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
