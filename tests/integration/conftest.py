"""One server, on a tiny pair, for all tests that do not kill it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Server, serving
from tests.models import VOCAB_SIZE, Pair, save, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="session")
def server(tiny_pair: Pair) -> Iterator[Server]:
    with serving(tiny_pair.target) as running:
        yield running


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft whose tokenizer differs from the server's in its last merges."""
    directory = tmp_path_factory.mktemp("other") / "draft"
    save(tiny_llama(), directory)
    tiny_tokenizer(VOCAB_SIZE - 5).save_pretrained(directory)
    return directory
