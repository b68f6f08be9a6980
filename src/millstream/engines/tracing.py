"""Follows a model's forward with ``torch.fx``, and says why not where that cannot be or would not be true."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from millstream.engines import arithmetic, operations, spatial
from millstream.engines.arithmetic import SPLITS

__all__ = ["CASTS", "FUNCTIONS", "METHODS", "MODULES", "RESHAPES", "first_line", "hooks", "trace"]

MODULES = operations.MODULES | spatial.MODULES
FUNCTIONS = operations.FUNCTIONS | spatial.FUNCTIONS | arithmetic.FUNCTIONS
METHODS = operations.METHODS | arithmetic.METHODS
RESHAPES = {"contiguous", "flatten", "reshape", "squeeze", "unsqueeze", "view", "unflatten"}
CASTS = {"long": torch.int64, "float": torch.float32, "double": torch.float64}
NUMBERS = {"size", "dim", "numel"}


def trace(model: nn.Module) -> fx.GraphModule | str:
    """The model's graph, of parts that are all known; or why there is none.

    >>> trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    'the model holds BatchNorm1d, which the fused engine does not know'
    """
    if any(hooks(model)):
        return "modules of the model have hooks"
    try:
        twin = copy.deepcopy(model)  # a forward may leave something behind in its model
        twin.train()
        found = [str(fx.Tracer().trace(twin)) for _ in range(3)]
        graph = fx.Tracer().trace(twin)
        twin.eval()
        found += [str(fx.Tracer().trace(twin)), str(graph)]
        graph_module = fx.GraphModule(model, graph)
    except Exception as error:  # whatever a person's forward does with what stands in for its input
        return f"torch.fx does not follow the model's forward ({type(error).__name__}: {first_line(error)})"
    if not _is_as_before(twin, model):
        return "the model's forward changes the model"
    if len(set(found)) > 1:
        return (
            "the model's forward does other things in training than the modules that it calls, or not always the same"
        )
    return next(filter(None, (_unknown(node, model) for node in graph.nodes)), graph_module)


def _unknown(node: fx.Node, model: nn.Module) -> str:
    """Why a node is none of the known ones; empty if it is."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        known = type(module) in MODULES or isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten)
        known = known and "forward" not in vars(module)  # which a person may have put there
        what = type(module).__name__
    elif node.op == "call_function":
        known = node.target in FUNCTIONS or node.target in (
            operator.getitem,
            getattr,
            torch.flatten,
            torch.cat,
            *SPLITS,
        )
        what = f"{getattr(node.target, '__name__', node.target)}()"
    elif node.op == "call_method":
        known = node.target in METHODS or node.target in (RESHAPES | CASTS.keys() | NUMBERS | SPLITS | {"get"})
        what = f"Tensor.{node.target}()"
    else:
        known, what = node.op in ("placeholder", "output", "get_attr"), node.op
    return "" if known else f"the model holds {what}, which the fused engine does not know"


def hooks(model: nn.Module) -> list[Any]:
    """Where the model's modules keep their hooks; all are empty where there are none."""
    return [
        kept
        for part in model.modules()
        for kept in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    ]


def _is_as_before(twin: nn.Module, model: nn.Module) -> bool:
    """Whether nothing but the modes differs between a model and its copy."""
    for one, other in zip(twin.modules(), model.modules(), strict=True):
        for name, value in vars(other).items():
            found = vars(one).get(name)
            if isinstance(value, int | float | str | bool | None) and name != "training" and found != value:
                return False
    pairs = zip(twin.named_buffers(), model.named_buffers(), strict=True)
    return all(isinstance(a, Tensor) and not isinstance(a, fx.Proxy) and torch.equal(a, b) for (_, a), (_, b) in pairs)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]
