"""The optimiser: Muon for the matrices inside the layers, AdamW for embeddings and norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip
"""Newton-Schulz coefficients of five steps (Cesista, You & Jordan 2025)."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest orthogonal matrices (all singular values about 1) of `[count, rows, columns]`."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = (x.transpose(1, 2) if tall else x).to(matrices.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised (Jordan et al. 2024), with decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(
            list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    buffer = state["momentum"]
                    assert parameter.grad is not None
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                steps = orthogonalise(torch.stack(updates))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)


class Optimiser:
    """Both optimisers under one schedule: warm-up, constant, then linearly to zero."""

    def __init__(
        self, model: nn.Module, steps: int, decay: float, muon_lr: float, adam_lr: float
    ) -> None:
        inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
        outer = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
        self.steps, self.decay = steps, decay
        self.parts: list[torch.optim.Optimizer] = [
            Muon(inner, lr=muon_lr, momentum=0.95, weight_decay=0.05),
            torch.optim.AdamW(outer, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def factor(self, step: int, warm_up: int = 50) -> float:
        """What the peak learning rates are multiplied with at `step`."""
        rest = (self.steps - step) / max(1.0, self.steps * self.decay)
        return min(1.0, (step + 1) / warm_up, max(0.0, rest))

    def step(self, step: int) -> None:
        """Clip nothing, set the rates, step both, clear the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * self.factor(step)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        """State of both, to resume from."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Resume from `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
