"""The precision policy is in force after `apply_policy`, and an audit finds what breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.errors import ConfigError
from common.lm.precision import apply_policy, audit, read_settings, resolve_dtype
from common.lm.runner import Segment
from tests.models import language_model


@pytest.fixture(autouse=True)
def exact_afterwards() -> Iterator[None]:
    yield
    apply_policy()


def test_every_switch_is_exact_and_read_back_from_torch() -> None:
    report = apply_policy("float32")
    assert report.exact
    assert report.settings["dtype"] == "float32"
    assert report.settings["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert report.settings["cuda.matmul.allow_tf32"] == "False"
    assert report.settings["cudnn.allow_tf32"] == "False"
    for half in ("fp16", "bf16"):
        name = f"cuda.matmul.allow_{half}_reduced_precision_reduction"
        assert report.settings[name] == "False"
    assert {"dtype": "float32", **read_settings()} == report.settings
    assert apply_policy("float32") == report


def test_loosened_settings_are_tightened_again() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cudnn.allow_tf32 = True
    assert read_settings()["float32_matmul_precision"] == "medium"
    assert apply_policy().exact


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="torch < 2.9 has one interface only"
)
def test_the_newer_interface_set_by_somebody_else_does_not_get_in_the_way() -> None:
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "tf32"
    backends.mkldnn.matmul.fp32_precision = "bf16"
    report = apply_policy()
    assert report.exact
    assert report.settings["mkldnn.matmul.fp32_precision"] == "ieee"


def test_dtypes_by_name() -> None:
    assert resolve_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="'float64': choose one of float32, bfloat16, float16"):
        resolve_dtype("float64")


def test_a_float32_model_is_float32_in_every_operation_attention_included() -> None:
    lm = language_model("llama")
    with lm.cache.session() as session:
        report = audit(lambda: lm.forward([Segment(session, [1, 2, 3], 0, 3)]))
    assert report.offenders(torch.float32) == []
    assert set(report.dtypes) == {"float32"}
    assert any("scaled_dot_product" in operation for operation, _ in report.counts)


def test_a_planted_half_precision_operation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = F.scaled_dot_product_attention

    def sloppy(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        half = [tensor.bfloat16() for tensor in args]
        return exact(*half, **kwargs).float()  # type: ignore[arg-type]

    lm = language_model("llama")
    monkeypatch.setattr(F, "scaled_dot_product_attention", sloppy)
    with lm.cache.session() as session:
        report = audit(lambda: lm.forward([Segment(session, [1, 2, 3], 0, 3)]))
    found = report.offenders(torch.float32)
    assert found
    assert {dtype for _, dtype, _ in found} == {torch.bfloat16}
    assert any("scaled_dot_product" in operation for operation, _, _ in found)
    assert report.dtypes["bfloat16"] == sum(count for _, _, count in found)
