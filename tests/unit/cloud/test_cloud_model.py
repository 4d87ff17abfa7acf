from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cloud_server import CloudModel
from cloud_server.model import load_draft, load_target
from common.config import CloudSection, Config, EngineSection
from common.errors import HandshakeError, ModelError
from common.lm.execution import CompileMode
from tests.models import VOCAB_SIZE, Pair, save, tiny_llama, tiny_tokenizer


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


def test_a_draft_beside_the_target_has_its_tokenizer_and_a_cache_as_large(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    config = Config(cloud=CloudSection(cache_tokens=768), engine=EngineSection(compile="off"))
    target = load_target(str(tiny_pair.target), config)
    draft = load_draft(str(tiny_pair.draft), target, config)
    assert draft.cache.capacity_tokens == target.cache.capacity_tokens == 768
    assert (draft.dtype, draft.loaded.device) == (target.dtype, target.loaded.device)
    other = save(tiny_llama(), tmp_path / "other")
    tiny_tokenizer(VOCAB_SIZE - 5).save_pretrained(other)
    with pytest.raises(HandshakeError, match=r"--draft-model \w{12} \(315 .*--model \w{12} \(320 "):
        load_draft(str(other), target, config)


@pytest.mark.parametrize(
    ("mode", "path"), [("off", "eager"), ("auto", "kernels"), ("on", "compiled")]
)
def test_a_draft_beside_the_target_runs_as_that_does(
    tiny_pair: Pair, mode: CompileMode, path: str
) -> None:
    config = Config(cloud=CloudSection(device="cpu"), engine=EngineSection(compile=mode))
    target = load_target(str(tiny_pair.target), config)
    draft = load_draft(str(tiny_pair.draft), target, config)
    assert (target.execution.path, draft.execution.path) == (path, path)
