"""From the name a user gives to a directory on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from common.errors import ModelError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_PICKLED = ["pytorch_model*.bin"]
_UNWANTED = ["*/*", "consolidated*"]  # other formats, and copies in them


def resolve(
    path_or_id: str, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Path:
    """Returns the directory of a model, fetching it from the hub when it is named by id.

    Code and pickled weights are fetched only where they may be used, and pickled weights only
    where there are no safetensors. Raises ModelError, with the way out, when there is no such
    directory or id.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file: name the directory that holds config.json")
    if not _HUB_ID.fullmatch(path_or_id) or path_or_id.startswith("."):
        raise ModelError(f"there is no directory {path}, and this is no model id of the hub either")
    wanted = [*_WANTED, "*.py"] if trust_remote_code else _WANTED
    try:
        directory = _fetch(path_or_id, wanted)
        if allow_pickle and not any(directory.glob("*.safetensors")):
            directory = _fetch(path_or_id, [*wanted, *_PICKLED])
        return directory
    except Exception as error:  # the hub raises by HTTP status, network and cache state
        raise ModelError(
            f"there is no directory {path_or_id}, and the hub did not give a model of that id "
            f"({type(error).__name__}): check the name, or `hf download` it where there is network"
        ) from error


def _fetch(name: str, wanted: list[str]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=_UNWANTED)
    )
