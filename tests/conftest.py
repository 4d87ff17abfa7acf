"""Fixtures that are made once a session."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.models import Pair, save_pair

# Models here are tiny: a second thread costs more than it gives, and much more on a busy machine.
torch.set_num_threads(1)

# Also where it was started by what ignores it: processes that are started here would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Directories of a tiny target (`.target`) and a noised copy of it as draft (`.draft`)."""
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `deploy/make_certs.sh` makes: an authority, a server, a client and a token."""
    directory = tmp_path_factory.mktemp("certificates")
    script = Path(__file__).parents[1] / "deploy" / "make_certs.sh"
    subprocess.run(["sh", str(script), str(directory)], check=True, stdout=subprocess.DEVNULL)
    return directory
