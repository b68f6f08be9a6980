"""RMSprop whose second moments are factored, so that a step costs no more than one of plain SGD.

The gradient of a ``Linear`` for one record is δ xᵀ, of rank one. RMSprop keeps a running mean of its square for
every weight; the running means of its rows and of its columns say nearly as much (Shazeer and Stern 2018, "Adafactor")
and leave a step what it was: (δ / √rows) (x / √columns)ᵀ, a matrix of rank one. Nothing accumulates for ever, so steps
stay as large after a million records as they were before: what a stream that changes needs.

Shapes: R rows and C columns of a weight; a convolution has R output channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from millstream.errors import SettingError

__all__ = ["FactoredRMSprop"]

_TINY = 1e-30  # a row whose every gradient was 0 has no step


class FactoredRMSprop(torch.optim.Optimizer):
    """A step of ``lr`` × gradient / √(its mean square), as rows and columns tell that mean.

    ``most`` bounds the root mean square of a matrix's step, in units of ``lr``: rows and columns that were both quiet
    for long tell too small a mean.

    For a matrix G the running means r of its rows' squares and c of its columns' give √(r cᵀ / mean(r)). Vectors keep
    a mean for each element, as RMSprop does. A sparse gradient changes only the rows that it has, each with a mean of
    its own that counts its own occurrences. ``alpha`` is how much of a mean is kept by an update; ``weight_decay``
    shrinks weights by lr × decay beside the step (Loshchilov and Hutter 2019).

    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = FactoredRMSprop(model.parameters(), lr=0.003)
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> sorted(optimizer.state[model.weight]), optimizer.state[model.weight]["row_mean"].shape
    (['column_mean', 'row_mean'], torch.Size([2]))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        most: float = 3.0,
    ) -> None:
        for name, value, is_right, wanted in (
            ("lr", lr, lr >= 0, "0 or more"),
            ("alpha", alpha, 0 <= alpha < 1, "0 to 1, less than 1"),
            ("eps", eps, eps > 0, "more than 0"),
            ("weight_decay", weight_decay, weight_decay >= 0, "0 or more"),
            ("most", most, most > 0, "more than 0"),
        ):
            if not is_right:
                raise SettingError(got=f"{name}={value}", wanted=wanted, do="leave it out for the default")
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "most": most})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    continue
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if parameter.ndim > 1:
                    self._step_matrix(parameter, group)
                else:
                    self._step_vector(parameter, group)
        return loss

    def _step_matrix(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient_RC = parameter.grad.reshape(len(parameter), -1)  # type: ignore[union-attr]
        state = self.state[parameter]
        if not state:
            state["row_mean"] = parameter.new_zeros(gradient_RC.shape[0])
            state["column_mean"] = parameter.new_zeros(gradient_RC.shape[1])
        squares_RC = gradient_RC.square()
        rows_R = _advance(state["row_mean"], squares_RC.mean(1), group["alpha"])
        columns_C = _advance(state["column_mean"], squares_RC.mean(0), group["alpha"])
        scale_R = rows_R.mean().sqrt() / (rows_R.sqrt() + _TINY)
        step_RC = scale_R[:, None] * gradient_RC / (columns_C.sqrt() + group["eps"])
        bound = (group["most"] / (step_RC.square().mean().sqrt() + _TINY)).clamp(max=1.0)
        parameter.sub_((group["lr"] * bound * step_RC).reshape(parameter.shape))

    def _step_vector(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["square_mean"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        mean = _advance(state["square_mean"], gradient.square(), group["alpha"])
        parameter.sub_(group["lr"] * gradient / (mean.sqrt() + group["eps"]))

    def _step_rows(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad.coalesce()  # type: ignore[union-attr]
        rows, values = gradient._indices()[0], gradient._values()
        state = self.state[parameter]
        if not state:
            state["row_mean"] = parameter.new_zeros(len(parameter))
        means = _advance(state["row_mean"][rows], values.square().mean(1), group["alpha"])
        state["row_mean"][rows] = means
        parameter[rows] = parameter[rows] - group["lr"] * values / (means.sqrt() + group["eps"])[:, None]


def _advance(mean: Tensor, value: Tensor, alpha: float) -> Tensor:
    return mean.mul_(alpha).add_(value, alpha=1 - alpha)
