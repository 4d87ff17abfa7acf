"""What a model directory may not do unasked: run its own code, or be unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file

from cloud_server.model import load_target
from common.config import CloudSection, Config, EdgeSection, EngineSection
from common.errors import ModelError
from common.lm import hub
from common.lm.loading import LoadedModel, load
from edge_client.drafter import EdgeModel
from tests.models import Pair, save, tiny_llama

TRUSTING = Config(
    cloud=CloudSection(trust_remote_code=True, allow_pickle=True, device="cpu"),
    edge=EdgeSection(trust_remote_code=True, allow_pickle=True),
    engine=EngineSection(compile="off"),
)

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({marker!r}).touch()

class TinyConfig(LlamaConfig):
    model_type = "tiny_custom"
"""

MODELING = """
from transformers import LlamaForCausalLM
from .configuration_tiny import TinyConfig

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama that calls itself by another name, in code that leaves a file `ran` behind."""
    monkeypatch.setattr(
        transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    directory = save(tiny_llama(), tmp_path / "custom")
    marker = str(tmp_path / "ran")
    (directory / "configuration_tiny.py").write_text(CONFIGURATION.format(marker=marker))
    (directory / "modeling_tiny.py").write_text(MODELING)
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["model_type"] = "tiny_custom"
    config["architectures"] = ["TinyForCausalLM"]
    config["auto_map"] = {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    }
    file.write_text(json.dumps(config))
    return directory


@pytest.fixture
def pickled(tiny_pair: Pair, tmp_path: Path) -> Path:
    """The tiny target with its weights pickled instead."""
    directory = tmp_path / "pickled"
    directory.mkdir()
    for file in tiny_pair.target.iterdir():
        if file.suffix != ".safetensors":
            (directory / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_pair.target / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin")
    return directory


def weights(loaded: LoadedModel) -> torch.Tensor:
    return torch.cat([parameter.flatten() for _, parameter in loaded.model.named_parameters()])


def test_code_beside_the_weights_does_not_run_unasked(custom: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Python code of its own") as caught:
        load(str(custom))
    for key in ("cloud.trust_remote_code=true", "edge.trust_remote_code=true", str(custom)):
        assert key in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_that_needs_none_is_left_alone(custom: Path, tmp_path: Path) -> None:
    file = custom / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llama"}))
    assert load(str(custom)).architecture == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_a_causal_model_by_code_alone_is_refused_by_its_key(custom: Path, tmp_path: Path) -> None:
    file = custom / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "vit"}))
    with pytest.raises(ModelError, match=r"cloud\.trust_remote_code=true"):
        load(str(custom))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_by_code_is_refused_by_its_key(tiny_pair: Pair, tmp_path: Path) -> None:
    directory = save(tiny_llama(), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    settings = {
        "tokenizer_class": "TinyTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "tokenization_tiny.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match=r"edge\.trust_remote_code=true"):
        load(str(directory))


def test_code_runs_when_asked_for_at_either_end(custom: Path, tmp_path: Path) -> None:
    target = load_target(str(custom), TRUSTING)
    assert (tmp_path / "ran").exists()
    assert target.loaded.architecture == "TinyForCausalLM"
    draft = EdgeModel.configured(str(custom), TRUSTING)
    assert draft.loaded.model_fingerprint == target.loaded.model_fingerprint


def test_pickled_weights_are_refused_unasked(pickled: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors") as caught:
        load(str(pickled))
    for key in ("cloud.allow_pickle=true", "edge.allow_pickle=true"):
        assert key in str(caught.value)


def test_pickled_weights_are_the_same_model_when_asked_for_at_either_end(
    pickled: Path, tiny_pair: Pair
) -> None:
    target = load_target(str(pickled), TRUSTING).loaded
    draft = EdgeModel.configured(str(pickled), TRUSTING).loaded
    safe = load(str(tiny_pair.target))
    assert target.model_fingerprint == draft.model_fingerprint == safe.model_fingerprint
    assert target.checkpoint_dtype == "float32"
    assert torch.equal(weights(target), weights(safe))


def test_shards_and_old_files_and_other_dtypes_are_read_too(
    pickled: Path, tiny_pair: Pair, tmp_path: Path
) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    names = sorted(half)
    shards = {"pytorch_model-1.bin": names[:5], "pytorch_model-2.bin": names[5:]}
    for file, part in shards.items():
        content = {name: half[name] for name in part}
        torch.save(content, pickled / file, _use_new_zipfile_serialization=False)
    where = {name: file for file, part in shards.items() for name in part}
    index = {"metadata": {}, "weight_map": where}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (pickled / "pytorch_model.bin").unlink()
    found = load(str(pickled), allow_pickle=True)
    assert found.checkpoint_dtype == "bfloat16"

    save_file(half, pickled / "model.safetensors", metadata={"format": "pt"})
    assert load(str(pickled)).model_fingerprint == found.model_fingerprint
    half["model.norm.weight"][3] += 1
    torch.save(half, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert load(str(pickled), allow_pickle=True).model_fingerprint != found.model_fingerprint


def test_safetensors_are_preferred_even_where_pickles_are_allowed(pickled: Path) -> None:
    save(tiny_llama(), pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never opened")
    load(str(pickled), allow_pickle=True)


class Payload:
    """Is what an attacker pickles: something to run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_pickle_does_not_run_even_where_pickles_are_allowed(
    pickled: Path, tmp_path: Path, old: bool
) -> None:
    marker = tmp_path / "ran"
    content = {"model.norm.weight": Payload(marker)}
    file = pickled / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(ModelError, match="not a readable file of pickled weights"):
        load(str(pickled), allow_pickle=True)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the payload is live
    assert marker.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, ["weights"], {"a": 1}])
def test_a_pickle_of_something_else_is_named(pickled: Path, content: Any) -> None:
    torch.save(content, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin holds something else"):
        load(str(pickled), allow_pickle=True)


def test_pickles_are_fetched_only_when_allowed_and_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, pickled: Path
) -> None:
    asked: list[bool] = []

    def fetch(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append("pytorch_model*.bin" in allow_patterns)
        return str(pickled)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    hub.resolve("somebody/something")
    assert asked == [False]
    hub.resolve("somebody/something", allow_pickle=True)
    assert asked == [False, False, True]
    (pickled / "model.safetensors").touch()
    hub.resolve("somebody/something", allow_pickle=True)
    assert asked == [False, False, True, False]
