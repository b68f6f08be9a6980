"""Reads a torch model and its optimizer as what the dense kernel knows: a chain of layers and the dials of its steps.

It gives either a ``Chain`` or the reason why there is none. It computes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from millstream.engines.kernels import activations, losses, steps
from millstream.engines.rule import UpdateRule
from millstream.losses import NamedLoss

__all__ = ["Chain", "Criterion", "Layer", "read"]

_ACTIVATIONS: dict[type[nn.Module], tuple[int, str]] = {
    nn.Identity: (activations.IDENTITY, ""),
    nn.ReLU: (activations.RELU, ""),
    nn.LeakyReLU: (activations.LEAKY_RELU, "negative_slope"),
    nn.Tanh: (activations.TANH, ""),
    nn.Sigmoid: (activations.SIGMOID, ""),
    nn.SiLU: (activations.SILU, ""),
    nn.GELU: (activations.GELU, ""),
    nn.ELU: (activations.ELU, "alpha"),
    nn.Softplus: (activations.SOFTPLUS, "beta"),
}
_LOSSES = {
    "cross_entropy": losses.CROSS_ENTROPY,
    "binary_cross_entropy": losses.BINARY_CROSS_ENTROPY,
    "mse": losses.MSE,
    "huber": losses.HUBER,
    "poisson": losses.POISSON,
    "quantile": losses.QUANTILE,
}
_OPTIMIZERS: dict[type[torch.optim.Optimizer], int] = {
    torch.optim.SGD: steps.SGD,
    torch.optim.Adam: steps.ADAM,
    torch.optim.AdamW: steps.ADAMW,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One ``Linear`` and the activation after it."""

    linear: nn.Linear
    activation: int = activations.IDENTITY
    argument: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Criterion:
    """A named loss as the kernel knows it."""

    kind: int
    parameter: float
    smoothing: float
    class_weights: Tensor | None


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """A network, its loss and the kind of its optimizer."""

    layers: tuple[Layer, ...]
    criterion: Criterion
    optimizer: int
    dtype: torch.dtype
    flattens: bool  # inputs of more than two dimensions are welcome

    @property
    def widths(self) -> list[int]:
        return [self.layers[0].linear.in_features, *(layer.linear.out_features for layer in self.layers)]


def read(rule: UpdateRule) -> Chain | str:
    """The rule as a chain, or why it is none.

    >>> from millstream import losses
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters(), lr=0.1))
    >>> read(rule).widths
    [2, 3, 2]
    """
    layers = _layers(rule.model)
    if isinstance(layers, str):
        return layers
    criterion = _criterion(rule, layers[-1].linear.out_features)
    if isinstance(criterion, str):
        return criterion
    reason = _refused_rule(rule) or _refused_parameters(rule, layers)
    if reason:
        return reason
    flattens = any(isinstance(part, nn.Flatten) for part in _parts(rule.model))
    return Chain(layers, criterion, _OPTIMIZERS[type(rule.optimizer)], layers[0].linear.weight.dtype, flattens)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential and not _has_hooks(module):
        for part in module:
            yield from _parts(part)
    else:
        yield module


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _layers(model: nn.Module) -> tuple[Layer, ...] | str:
    found: list[Layer] = []
    for part in _parts(model):
        kind = type(part)
        if _has_hooks(part):
            return f"{kind.__name__} has hooks"
        if kind is nn.Linear:
            found.append(Layer(part))  # type: ignore[arg-type]
        elif kind is nn.Identity or (
            isinstance(part, nn.Flatten) and not found and part.start_dim == 1 and part.end_dim == -1
        ):
            continue  # records come flat in any case
        elif kind in _ACTIVATIONS and found and found[-1].activation == activations.IDENTITY:
            code, attribute = _ACTIVATIONS[kind]
            if getattr(part, "approximate", "none") != "none" or getattr(part, "threshold", 20) != 20:
                return f"{part} is not the common form of {kind.__name__}"
            found[-1] = dataclasses.replace(
                found[-1], activation=code, argument=float(getattr(part, attribute)) if attribute else 0.0
            )
        else:
            return f"the model holds {kind.__name__}, which is not part of a chain of Linear layers and activations"
    return tuple(found) if found else "the model has no Linear layer"


def _criterion(rule: UpdateRule, num_outputs: int) -> Criterion | str:
    loss = rule.loss
    if not isinstance(loss, NamedLoss):
        return f"loss {loss.name} is not a named one"
    weights = loss.class_weights
    if weights is not None and len(weights) != (2 if loss.task == "binary" else num_outputs):
        return f"{len(weights)} class weights for {num_outputs} outputs"
    if loss.name == "cross_entropy" and num_outputs < 2:
        return "cross-entropy of one output"
    kind = _LOSSES[loss.name.partition(":")[0]]
    return Criterion(kind, float(loss.parameter or 0.0), float(loss.label_smoothing), weights)


def _refused_rule(rule: UpdateRule) -> str:
    optimizer = rule.optimizer
    if type(optimizer) not in _OPTIMIZERS:
        return f"optimizer {type(optimizer).__name__}"
    if rule.scheduler is not None:
        return "a scheduler that steps after every record"
    if rule.clip_norm is not None or rule.clip_value is not None:
        return "gradient clipping"
    for group in optimizer.param_groups:
        if any(isinstance(value, Tensor) for value in group.values()):
            return "a learning rate that is a tensor"
        option = next((o for o in ("amsgrad", "differentiable", "decoupled_weight_decay") if group.get(o)), "")
        if option and not (type(optimizer) is torch.optim.AdamW and option == "decoupled_weight_decay"):
            return f"the optimizer's option {option}"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "hooks of the optimizer"
    return ""


def _refused_parameters(rule: UpdateRule, layers: tuple[Layer, ...]) -> str:
    parameters = [p for layer in layers for p in layer.linear.parameters()]
    if len({id(p) for p in parameters}) < len(parameters):
        return "parameters that are tied"
    if {id(p) for p in parameters} != {id(p) for p in rule.model.parameters()}:
        return "parameters outside the chain"
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        return "hooks of a parameter"
    kinds = {(p.device.type, p.dtype) for p in parameters}
    if len(kinds) > 1 or not kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}:
        return "parameters that are not all float32 (or all float64) on the CPU"
    return "" if all(p.is_contiguous() for p in parameters) else "parameters that are not contiguous"


def settings_of(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The parameter group of each parameter, by identity."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}
