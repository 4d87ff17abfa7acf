from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud_server import CloudModel
from common.errors import ModelError
from tests.models import Pair, save, tiny_llama


def test_it_is_float32_by_default(tiny_pair: Pair) -> None:
    target = CloudModel(str(tiny_pair.target))
    assert target.dtype is torch.float32
    assert target.cache.dtype is torch.float32
    assert target.precision.exact


def test_a_bfloat16_checkpoint_is_upcast_and_recorded_as_such(tmp_path: Path) -> None:
    stored = save(tiny_llama(), tmp_path / "stored", torch.bfloat16)
    target = CloudModel(str(stored))
    assert target.dtype is torch.float32
    assert target.loaded.checkpoint_dtype == "bfloat16"


def test_stock_generate_shares_the_weights(tiny_pair: Pair) -> None:
    target = CloudModel(str(tiny_pair.target))
    ours = {p.data_ptr() for p in target._module.parameters()}
    stock = {p.data_ptr() for p in target.stock.parameters()}
    assert ours == stock


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        CloudModel(str(tmp_path / "nowhere"))
