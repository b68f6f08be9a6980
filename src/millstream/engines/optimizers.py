"""Torch optimizers as the kernels know them: dials of each parameter, and state that is changed where it lies.

Shapes: P parameters, S rows of dials: one for all updates of a call, or one for each where a schedule steps.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from millstream.engines.factored import FactoredRMSprop
from millstream.engines.kernels import steps
from millstream.engines.rule import UpdateRule

__all__ = ["OptimizerState", "Schedule", "bytes_moved", "hooks", "kind_of", "refused", "tables_by_rows", "takes_rows"]

_KINDS: dict[type[torch.optim.Optimizer], int] = {
    torch.optim.SGD: steps.SGD,
    torch.optim.Adam: steps.ADAM,
    torch.optim.AdamW: steps.ADAMW,
    torch.optim.Adagrad: steps.ADAGRAD,
    torch.optim.RMSprop: steps.RMSPROP,
    FactoredRMSprop: steps.FACTORED,
}
# The options that a parameter group may have, and the dial that each is. Others must be off.
_DIALS = {
    "lr": steps.RATE,
    "weight_decay": steps.DECAY,
    "momentum": steps.MOMENTUM,
    "dampening": steps.DAMPENING,
    "nesterov": steps.NESTEROV,
    "alpha": steps.BETA2,
    "eps": steps.EPSILON,
    "lr_decay": steps.RATE_DECAY,
    "centered": steps.CENTERED,
    "amsgrad": steps.AMSGRAD,
    "most": steps.MOST,
}
# The state of each kind in the order of the kernel's three places; with the option without which there is none.
_STATE: dict[int, tuple[tuple[str, str], ...]] = {
    steps.SGD: (("momentum_buffer", "momentum"),),
    steps.ADAM: (("exp_avg", ""), ("exp_avg_sq", ""), ("max_exp_avg_sq", "amsgrad")),
    steps.ADAMW: (("exp_avg", ""), ("exp_avg_sq", ""), ("max_exp_avg_sq", "amsgrad")),
    steps.ADAGRAD: (("sum", ""),),
    steps.RMSPROP: (("square_avg", ""), ("momentum_buffer", "momentum"), ("grad_avg", "centered")),
}

_OF_A_CONVOLUTION = 256  # weights of a dense layer that can be moved while one of a convolution is used


def kind_of(optimizer: torch.optim.Optimizer) -> int:
    """The kernel's number for an optimizer that is not refused."""
    return _KINDS[type(optimizer)]


def refused(rule: UpdateRule) -> str:
    """Why the kernels cannot take the optimizer's steps; empty if they can."""
    optimizer = rule.optimizer
    if type(optimizer) not in _KINDS:
        return f"optimizer {type(optimizer).__name__}"
    if isinstance(rule.scheduler, ReduceLROnPlateau):
        return "a scheduler that waits for a plateau"
    for group in optimizer.param_groups:
        if any(isinstance(value, Tensor) for value in group.values()):
            return "a learning rate that is a tensor"
        if group.get("differentiable"):
            return "the optimizer's option differentiable"
        if group.get("decoupled_weight_decay") and type(optimizer) is torch.optim.Adam:
            return "the optimizer's option decoupled_weight_decay"
    if isinstance(optimizer, FactoredRMSprop) and not _stays_of_rank_one(rule):
        return "weight decay or clipping by value under FactoredRMSprop"
    if any(hooks(optimizer)):
        return "hooks of the optimizer"
    return _refused_tables(rule)


def _stays_of_rank_one(rule: UpdateRule) -> bool:
    return rule.clip_value is None and not any(group["weight_decay"] for group in rule.optimizer.param_groups)


def _refused_tables(rule: UpdateRule) -> str:
    """Torch has no step of most optimizers by a sparse gradient, and says so when it comes to it."""
    groups = {id(p): group for group in rule.optimizer.param_groups for p in group["params"]}
    for part in rule.model.modules():
        group = (
            groups.get(id(part.weight)) if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse else None
        )
        if group is not None and not takes_rows(rule.optimizer, group, is_sparse=True):
            return f"sparse gradients under {type(rule.optimizer).__name__} with these options"
    return ""


def hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Where an optimizer keeps its hooks; all are empty where there are none."""
    return [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]


def takes_rows(optimizer: torch.optim.Optimizer, group: dict[str, Any], *, is_sparse: bool) -> bool:
    """Whether a step changes only those rows of a table that have a gradient; ``is_sparse`` says how that is kept."""
    if isinstance(optimizer, FactoredRMSprop):
        return is_sparse and not group["weight_decay"]
    if isinstance(optimizer, torch.optim.SGD):
        return not group["momentum"] and not group["weight_decay"]
    return isinstance(optimizer, torch.optim.Adagrad) and not group["weight_decay"] and group["eps"] > 0  # 0 / 0


def bytes_moved(rule: UpdateRule) -> float:
    """What one record reads and writes of weights and optimizer state, in bytes; a static function of the rule.

    A convolution counts as the bytes that could be moved while it computes 1,024 places of its output.
    """
    optimizer = rule.optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = 0.0
    for part in rule.model.modules():
        for parameter in part.parameters(recurse=False):
            group = groups.get(id(parameter))
            is_table = isinstance(part, nn.Embedding | nn.EmbeddingBag)
            if group and is_table and takes_rows(optimizer, group, is_sparse=part.sparse):  # type: ignore[arg-type]
                continue
            num_arrays = 1 + sum(size == parameter.numel() for _, size in _state_of(optimizer, group or {}, parameter))
            is_kernel = isinstance(part, nn.Conv1d | nn.Conv2d) and parameter.ndim > 1
            times = num_arrays + (_OF_A_CONVOLUTION if is_kernel else 0)
            found += 2.0 * times * parameter.numel() * parameter.element_size()
    return found


def tables_by_rows(model: nn.Module) -> set[int]:
    """The identities of tables whose gradients are sparse."""
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse]
    return {id(part.weight) for part in tables}


def _state_of(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor, *, by_rows: bool = False
) -> list[tuple[str, int]]:
    """Name and size of a parameter's state in the order of the kernel's places; "" for what there is not."""
    if isinstance(optimizer, FactoredRMSprop):
        if by_rows:
            return [("row_mean", len(parameter))]
        if parameter.ndim > 1:
            return [("row_mean", len(parameter)), ("column_mean", parameter.numel() // max(1, len(parameter)))]
        return [("square_mean", parameter.numel())]
    names = [name if group and (not option or group[option]) else "" for name, option in _STATE[kind_of(optimizer)]]
    return [(name, parameter.numel() if name else 0) for name in names]


class OptimizerState:
    """The dials and the state of P parameters, taken up before a call of a kernel and given back after it."""

    def __init__(self, rule: UpdateRule, parameters: list[nn.Parameter]) -> None:
        self._optimizer, self._parameters = rule.optimizer, parameters
        self.kind = kind_of(rule.optimizer)
        self._bound = math.inf if rule.clip_value is None else float(rule.clip_value)
        self._all_groups = list(rule.optimizer.param_groups)  # kept, so that no other has the identity of one of these
        groups = {id(p): group for group in self._all_groups for p in group["params"]}
        self.groups = [groups.get(id(p)) for p in parameters]
        self.trained = [
            number for number, p in enumerate(parameters) if p.requires_grad and self.groups[number] is not None
        ]
        self.counts = np.zeros(len(parameters))
        self._by_rows = tables_by_rows(rule.model)
        self._taken: list[tuple[int, dict[str, Any]]] = []

    def signature(self) -> tuple[Any, ...]:
        """What the dials follow from; cheap to compare."""
        groups = self._optimizer.param_groups
        values = tuple(value for group in groups for name, value in group.items() if name != "params")
        return tuple(map(id, groups)), values

    def dials(self) -> npt.NDArray[np.float64]:
        """(P, dials) as the groups say now."""
        made = np.zeros((len(self._parameters), steps.NUM_DIALS))
        for number in self.trained:
            group, row = self.groups[number], made[number]
            assert group is not None
            for name, place in _DIALS.items():
                if name in group:
                    row[place] = float(group[name])
            if "betas" in group:
                row[steps.BETA1], row[steps.BETA2] = group["betas"]
            row[steps.SIGN] = -1.0 if group.get("maximize") else 1.0
            row[steps.BOUND] = self._bound
        return made

    def take_up(self, places: npt.NDArray[np.int64]) -> bool:
        """Addresses of the state into (P, 3), made as torch makes it; False if it is laid out in another way."""
        self._taken.clear()
        for number in self.trained:
            parameter, group = self._parameters[number], self.groups[number]
            assert group is not None
            by_rows = id(parameter) in self._by_rows
            found = _state_of(self._optimizer, group, parameter, by_rows=by_rows)
            if not any(name for name, _ in found):
                continue
            state = self._optimizer.state[parameter]
            self._taken.append((number, state))
            self.counts[number] = self._count(state, parameter)
            for place, (name, size) in enumerate(found):
                if name:
                    held = state.get(name)
                    if held is None:
                        shape = (size,) if name in ("row_mean", "column_mean") else parameter.shape
                        held = state[name] = parameter.new_zeros(shape)
                    if held.dtype != parameter.dtype or held.numel() != size or not held.is_contiguous():
                        return False
                    places[number, place] = held.data_ptr()
        return True

    def _count(self, state: dict[str, Any], parameter: nn.Parameter) -> float:
        if self.kind == steps.SGD:
            return 0.0 if state.get("momentum_buffer") is None else 1.0
        if self.kind == steps.FACTORED:
            return 1.0 if state else 0.0
        if "step" not in state:
            state["step"] = torch.tensor(0.0, dtype=torch.get_default_dtype())
        return float(state["step"])

    def give_back(self) -> None:
        """Counts into the optimizer's state; state that no update has touched is not left behind."""
        for number, state in self._taken:
            count = self.counts[number]
            if count == 0 and self.kind != steps.ADAGRAD:  # which makes its state when it is made itself
                del self._optimizer.state[self._parameters[number]]
            elif "step" in state:
                state["step"].fill_(count)


class Schedule:
    """The dials of each update where a scheduler steps after every one of them."""

    def __init__(self, rule: UpdateRule, state: OptimizerState) -> None:
        assert rule.scheduler is not None
        self._scheduler, self._groups, self._state = rule.scheduler, rule.optimizer.param_groups, state
        self._before: tuple[Any, ...] = ()
        self._num_steps = 0
        rule.optimizer._opt_called = True  # type: ignore[attr-defined]  # the scheduler looks whether it steps too early

    def dials(self, num_updates: int) -> npt.NDArray[np.float64] | None:
        """(S, P × dials): row k holds before update k of the next call, after which ``advance`` says how many came.

        None, and nothing has happened, where the scheduler comes to its end or turns momentum or decay on or off, as
        the form of a step follows from these.
        """
        self._before, self._num_steps = self._kept(), num_updates
        rows = []
        try:
            for _ in range(num_updates):
                rows.append(self._state.dials())
                self._scheduler.step()
        except Exception:  # torch takes the same steps up to here, and raises it
            self._put_back()
            return None
        found = np.stack(rows)
        is_on = found[:, :, [steps.MOMENTUM, steps.DECAY]] != 0
        if (is_on != is_on[:1]).any():
            self._put_back()
            return None
        return found.reshape(num_updates, -1)

    def advance(self, num_updates: int) -> None:
        """The scheduler has taken as many steps as there were updates."""
        if num_updates < self._num_steps:
            self._put_back()
            for _ in range(num_updates):
                self._scheduler.step()

    def _kept(self) -> tuple[Any, ...]:
        groups = [{name: value for name, value in group.items() if name != "params"} for group in self._groups]
        return copy.deepcopy(self._scheduler.state_dict()), copy.deepcopy(groups)

    def _put_back(self) -> None:
        self._scheduler.load_state_dict(self._before[0])
        for group, values in zip(self._groups, self._before[1], strict=True):
            group.update(values)
