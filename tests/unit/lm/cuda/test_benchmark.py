"""What a GPU would have to measure says so where there is none."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "no GPU: not measured\n"
