"""Models from disk: dtypes, vocabulary, context, end of sequence, and what a user sees on error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig

from common.errors import ConfigError, ModelError
from common.lm import hub
from common.lm.context import context_limit
from common.lm.loading import load, resolve_device
from common.lm.runner import LanguageModel
from tests.models import VOCAB_SIZE, Pair, build, loaded, save, tiny_config, tiny_llama


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "model")


def edit(file: Path, **entries: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | entries))


def test_loads_a_pair_quietly(tiny_pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    target = load(str(tiny_pair.target), device="cpu")
    LanguageModel(target, 128)
    assert capfd.readouterr() == ("", "")
    assert target.name == str(tiny_pair.target)
    assert target.architecture == "LlamaForCausalLM"
    assert (target.dtype, target.checkpoint_dtype) == (torch.float32, "float32")
    assert (target.vocab_size, target.context_length) == (VOCAB_SIZE, 256)
    assert target.context_note == ""
    assert not target.model.training
    assert not any(parameter.requires_grad for parameter in target.model.parameters())


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_upcast_and_recorded(
    tmp_path: Path, stored: torch.dtype
) -> None:
    model = tiny_llama()
    found = load(str(save(model, tmp_path, stored)), dtype="float32")
    assert found.checkpoint_dtype == str(stored).removeprefix("torch.")
    assert found.dtype == torch.float32
    state = dict(model.named_parameters())
    for name, parameter in found.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state[name].to(stored).float()), name


def test_mixed_checkpoints_say_so(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, file, metadata={"format": "pt"})
    assert load(str(directory)).checkpoint_dtype == "mixed (float32 99.9%, float16 0.0819%)"


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    whole = load(str(save(tiny_llama(), tmp_path / "whole")))
    sharded = tmp_path / "sharded"
    save(tiny_llama(), sharded)
    (sharded / "model.safetensors").unlink()
    model: Any = tiny_llama()
    model.save_pretrained(sharded, max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert load(str(sharded)).model_fingerprint == whole.model_fingerprint
    next(iter(sharded.glob("*.safetensors"))).unlink()
    with pytest.raises(ModelError, match=r"index\.json names .*safetensors, which is not there"):
        load(str(sharded))


def test_padded_logits_are_no_part_of_the_vocabulary(tmp_path: Path) -> None:
    found = load(str(save(tiny_llama(vocab_size=VOCAB_SIZE + 32), tmp_path)))
    assert found.vocab_size == VOCAB_SIZE


def test_fewer_logits_than_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="320 tokens but the model only 310 logits"):
        load(str(save(tiny_llama(vocab_size=310), tmp_path)))


def test_eos_comes_from_generation_config_then_config_then_tokenizer(directory: Path) -> None:
    edit(directory / "generation_config.json", eos_token_id=[5, 9])
    edit(directory / "config.json", eos_token_id=7)
    assert load(str(directory)).eos_token_ids == (5, 9)
    (directory / "generation_config.json").unlink()
    assert load(str(directory)).eos_token_ids == (7,)
    edit(directory / "config.json", eos_token_id=None)
    assert load(str(directory)).eos_token_ids == (0,)


def test_context_ends_where_rotary_frequencies_stop_being_constant(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
    }
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    found = load(str(save(build(config), tmp_path)))
    assert found.context_length == 64
    assert found.context_note.startswith("64 of 256: longrope rotary frequencies")
    LanguageModel(found, 128)


def test_dynamic_rope_serves_its_whole_constant_range(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    found = load(str(save(tiny_llama(rope_parameters=rope), tmp_path)))
    assert found.context_length == 256
    LanguageModel(found, 128)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def _rename_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _drop_a_weight(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _reshape_a_weight(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _truncate_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _leave_an_lfs_pointer(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def _no_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()


def _config(**entries: Any) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "config.json", **entries)


def _become_t5(directory: Path) -> None:
    tiny: Any = tiny_config("t5")
    tiny.save_pretrained(directory)


def _become_vit(directory: Path) -> None:
    edit(directory / "config.json", model_type="vit")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_rename_weights, "no model.safetensors: only safetensors weights are loaded"),
        (_remove("config.json"), "no configuration that transformers can read"),
        (_no_tokenizer, "no usable tokenizer"),
        (_drop_a_weight, r"1 weights missing, model\.layers\.1\.mlp\.up_proj"),
        (_reshape_a_weight, "cannot be loaded|1 weights mismatched"),
        (_truncate_weights, "not a readable safetensors file"),
        (_leave_an_lfs_pointer, "bytes in a shorter file"),
        (_become_t5, "t5 is an encoder-decoder"),
        (_become_vit, "vit is not a decoder-only causal language model"),
        (_config(model_type="nonesuch"), "no configuration that transformers can read"),
        (_config(quantization_config={"quant_method": "fp8"}), "quantised weights"),
    ],
)
def test_a_damaged_directory_is_named_with_a_way_out(
    directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(directory))
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_directory_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"there is no directory {tmp_path}/nothing"):
        load(f"{tmp_path}/nothing")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file: name the directory"):
        load(f"{tmp_path}/file")


def test_an_unknown_hub_id_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no such thing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="nobody/nothing, and the hub did not give a model"):
        load("nobody/nothing")


def test_a_hub_id_is_fetched_without_copies_in_other_formats(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    seen: dict[str, Any] = {}

    def fetch(name: str, **patterns: Any) -> str:
        seen.update(patterns, name=name)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("somebody/something") == directory
    assert seen["name"] == "somebody/something"
    assert "*.safetensors" in seen["allow_patterns"]
    assert "*.py" not in seen["allow_patterns"]
    hub.resolve("somebody/something", trust_remote_code=True)
    assert "*.py" in seen["allow_patterns"]


def test_a_context_without_length_is_refused() -> None:
    with pytest.raises(ModelError, match="names no max_position_embeddings"):
        context_limit(PreTrainedConfig(), "model")


def test_devices_are_checked_before_anything_is_loaded() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:", "cuda:x", "cpu:1", ""):
        with pytest.raises(ConfigError, match="choose auto, cpu, cuda or cuda:N"):
            resolve_device(name)
    with pytest.raises(ConfigError, match=r"'cuda:99' asked for, but \d+ CUDA devices"):
        resolve_device("cuda:99")


def test_an_unknown_dtype_names_the_known_ones(directory: Path) -> None:
    with pytest.raises(ConfigError, match="'int8': choose one of float32, bfloat16, float16"):
        load(str(directory), dtype="int8")


def test_a_folder_is_told_by_its_last_name_and_a_hub_id_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "secret" / "target"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    names = {str(folder): "target", f"{folder}/": "target", ".": "target", "org/model": "org/model"}
    model = tiny_llama()
    assert {name: loaded(model, name).short_name for name in names} == names
