"""The benchmark's GGUF file and its check of logits, without llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.gguf_file import entries, gguf_name, in_pairs
from benchmarks.llama_cpp import check
from tests.models import tiny, tiny_config

HEADS, SIZE, WIDTH = 3, 8, 5


def _angles(position: int) -> NDArray[np.float32]:
    frequencies = 10_000.0 ** (-np.arange(0, SIZE, 2) / SIZE)
    return (position * frequencies).astype(np.float32)


def _turned_as_transformers(heads: NDArray[np.float32], position: int) -> NDArray[np.float32]:
    angles = torch.from_numpy(np.tile(_angles(position), 2))[None, None]
    given = torch.from_numpy(heads)[None, :, None]
    turned: torch.Tensor = apply_rotary_pos_emb(given, given, angles.cos(), angles.sin())[0]
    return turned[0, :, 0].numpy()


def _turned_in_pairs(heads: NDArray[np.float32], position: int) -> NDArray[np.float32]:
    pairs = heads.reshape(HEADS, SIZE // 2, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * _angles(position))
    return np.stack([turned.real, turned.imag], -1).reshape(heads.shape)


@pytest.mark.parametrize(("at", "before"), [(0, 0), (5, 5), (9, 2)])
def test_scores_by_rotated_neighbours_are_those_by_rotated_halves(at: int, before: int) -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, HEADS * SIZE, WIDTH), np.float32)
    x, y = rng.standard_normal((2, WIDTH), np.float32)

    def heads(weight: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
        return (weight @ vector).reshape(HEADS, SIZE)

    want = _turned_as_transformers(heads(query, x), at) * _turned_as_transformers(
        heads(key, y), before
    )
    got = _turned_in_pairs(heads(in_pairs(query, HEADS), x), at) * _turned_in_pairs(
        heads(in_pairs(key, HEADS), y), before
    )
    np.testing.assert_allclose(got.sum(-1), want.sum(-1), rtol=1e-5, atol=1e-5)


def test_a_bias_is_ordered_as_its_rows_are() -> None:
    bias = np.arange(2 * 4, dtype=np.float32)
    assert in_pairs(bias, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_every_parameter_has_a_name_of_its_own(architecture: str) -> None:
    names = [name for name, _ in tiny(architecture).named_parameters()]
    assert len({gguf_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
    ],
)
def test_names(name: str, wanted: str) -> None:
    assert gguf_name(name) == wanted


def test_a_parameter_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no name for"):
        gguf_name("model.layers.0.self_attn.q_norm.weight")


def test_entries_state_the_shape() -> None:
    found = entries(tiny_config("llama"))
    assert found["attention.head_count"] == 4
    assert found["attention.head_count_kv"] == 2
    assert found["rope.dimension_count"] == 8
    assert isinstance(found["rope.freq_base"], float)


def test_what_is_not_written_is_refused() -> None:
    with pytest.raises(ValueError, match="qwen3"):
        entries(tiny_config("qwen3"))
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match="linear"):
        entries(tiny_config("llama", rope_parameters=stretched))


def test_other_logits_get_no_figure() -> None:
    ours = np.array([-10, 0, 5], np.float32)
    check(ours, np.array([-10.0009, 0, 5, 100], np.float32))
    for other in ([-10, 0, 5.002], [-10, 0, np.nan]):
        with pytest.raises(ValueError, match="off"):
            check(ours, np.array(other, np.float32))
