"""Fingerprints: equal for equal things however they are stored, different for different ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors

from common.lm.loading import load
from common.lm.tokenizers import fingerprint_tokenizer, vocabulary_size
from tests.models import Pair, noised_copy, save, tiny_llama, tiny_tokenizer, wrap


def edited(change: Any) -> str:
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    change(state)
    return fingerprint_tokenizer(wrap(Tokenizer.from_str(json.dumps(state))))


def test_the_same_files_loaded_twice_agree(tiny_pair: Pair) -> None:
    once, again = load(str(tiny_pair.target)), load(str(tiny_pair.target))
    assert once.model_fingerprint == again.model_fingerprint
    assert once.tokenizer_fingerprint == again.tokenizer_fingerprint
    assert len(once.model_fingerprint) == len(once.tokenizer_fingerprint) == 64


def test_target_and_draft_share_a_tokenizer_but_are_two_models(tiny_pair: Pair) -> None:
    target, draft = load(str(tiny_pair.target)), load(str(tiny_pair.draft))
    assert target.tokenizer_fingerprint == draft.tokenizer_fingerprint
    assert target.model_fingerprint != draft.model_fingerprint


def test_the_dtype_a_model_runs_in_does_not_change_its_fingerprint(tiny_pair: Pair) -> None:
    name = str(tiny_pair.target)
    assert load(name).model_fingerprint == load(name, dtype="bfloat16").model_fingerprint


def test_a_tokenizer_survives_saving_with_its_fingerprint(tiny_pair: Pair) -> None:
    assert load(str(tiny_pair.target)).tokenizer_fingerprint == fingerprint_tokenizer(
        tiny_tokenizer()
    )


def _drop_last_merge(state: dict[str, Any]) -> None:
    state["model"]["merges"].pop()


def _swap_merges(state: dict[str, Any]) -> None:
    merges = state["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def _swap_tokens(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]


def _normalise(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def _split_differently(state: dict[str, Any]) -> None:
    state["pre_tokenizer"]["add_prefix_space"] = True


@pytest.mark.parametrize(
    "change", [_drop_last_merge, _swap_merges, _swap_tokens, _normalise, _split_differently]
)
def test_what_changes_ids_changes_the_fingerprint(change: Any) -> None:
    assert edited(change) != fingerprint_tokenizer(tiny_tokenizer())


def test_an_added_token_changes_the_fingerprint_and_the_vocabulary() -> None:
    state = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken("<|turn|>")])
    wrapped = wrap(tokenizer)
    assert fingerprint_tokenizer(wrapped) != fingerprint_tokenizer(tiny_tokenizer())
    assert vocabulary_size(wrapped) == vocabulary_size(tiny_tokenizer()) + 1 == len(wrapped)


def test_what_does_not_change_ids_does_not_change_the_fingerprint() -> None:
    same = fingerprint_tokenizer(tiny_tokenizer())
    assert edited(lambda state: None) == same
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<|endoftext|>")
    tokenizer.enable_truncation(32)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    wrapped = wrap(tokenizer)
    wrapped.chat_template = "{{ messages }}"
    assert fingerprint_tokenizer(wrapped) == same


def test_one_changed_weight_or_setting_changes_the_fingerprint(tmp_path: Path) -> None:
    directory = save(tiny_llama(), tmp_path)
    before = load(str(directory)).model_fingerprint
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    changed = load(str(directory)).model_fingerprint
    assert changed != before
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-5}))
    assert load(str(directory)).model_fingerprint not in (before, changed)


def test_a_large_tensor_is_sampled_and_still_tells_two_models_apart(tmp_path: Path) -> None:
    model = tiny_llama(hidden_size=64, intermediate_size=256)
    first = load(str(save(model, tmp_path / "a"))).model_fingerprint
    second = load(str(save(noised_copy(model, 1e-4), tmp_path / "b"))).model_fingerprint
    assert first != second
