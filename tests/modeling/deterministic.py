"""Weights and inputs by formula, to compare with values that another program has computed from them."""

import torch
from torch import Tensor, nn


def wave(shape: tuple[int, ...], frequency: float) -> Tensor:
    """A float32 tensor of ``shape`` with values in [-1, 1]."""
    count = int(torch.tensor(shape).prod())
    return torch.sin(torch.arange(count, dtype=torch.float64) * frequency + 0.3).float().reshape(shape)


def fill_deterministically(module: nn.Module) -> None:
    """Sets every parameter and buffer by its place in the state dict; variances are positive."""
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(module.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            values = wave(tuple(tensor.shape), 0.37 + 0.01 * i)
            tensor.copy_(1 + 0.5 * values if name.endswith(("running_var", "norm.weight")) else 0.3 * values)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter; biases and class tokens of 0 and LayerScale of 1e-5 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = ("norm" in name and "weight" in name) or "gamma" in name or "lambda" in name
            large = parameter.ndim < 2 or "token" in name or "pos" in name
            parameter.copy_(1 + 0.2 * noise if around_one else noise * (0.5 if large else 0.1))
    return module.eval()
