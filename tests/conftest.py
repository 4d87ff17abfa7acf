"""Fixtures that are made once a session."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from tests.models import Pair, save_pair

# Models here are tiny: a second thread costs more than it gives, and much more on a busy machine.
torch.set_num_threads(1)

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Directories of a tiny target (`.target`) and a noised copy of it as draft (`.draft`)."""
    return save_pair(tmp_path_factory.mktemp("pair"))
