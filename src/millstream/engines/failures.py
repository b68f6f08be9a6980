"""What torch raises, as errors that say what was got, wherever a model, loss or optimizer may fail.

Shapes: N records.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from millstream.contracts import Chunk, Engine, Inputs, map_tensors
from millstream.errors import LearningError, MillstreamError, ModelError

__all__ = ["OF_TORCH", "failed", "failed_at", "num_records", "predicted"]

OF_TORCH = (RuntimeError, TypeError, AttributeError, IndexError, KeyError, ValueError, AssertionError)
"""What a model that does not fit its inputs raises, or torch within it."""


def predicted(engine: Engine, inputs: Inputs, do: str) -> Tensor:
    """(N, …) outputs of N records; ``ModelError``, with what to ``do``, where the model fails or gives other rows."""
    try:
        outputs: Any = engine.predict(inputs)
    except OF_TORCH as error:
        raise failed(error, inputs, do) from error
    num = num_records(inputs)
    if isinstance(outputs, Tensor) and outputs.ndim and len(outputs) == num:
        return outputs
    shape = f"of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ModelError(
        got=f"a model that gives outputs {shape} for {'one record' if num == 1 else f'{num} records'}",
        wanted="a tensor with one row for each record",
        do="return it from forward()",
    )


def num_records(inputs: Inputs) -> int:
    """N, be the tensors nested as they may."""
    parts: list[Tensor] = []
    map_tensors(inputs, parts.append)
    return len(parts[0]) if parts[0].ndim else 0


def failed(error: Exception, inputs: Inputs, do: str) -> ModelError:
    """A model that cannot run these inputs at all."""
    return ModelError(
        got=f"a model that fails on inputs of {_shapes(inputs)}: {_reason(error)}",
        wanted="a model for these inputs",
        do=do,
    )


def failed_at(error: Exception, chunk: Chunk, update: tuple[int, int], learned: int) -> LearningError:
    """The ``update`` of the records (first, last + 1) failed; the first ``learned`` of the chunk were learned."""
    first, last = update
    where = chunk.where(first) if last <= first + 1 else f"{chunk.where(first)} to {chunk.where(last - 1)}"
    if isinstance(error, MillstreamError):
        got, wanted, do = f"{error.got} at {where}", error.wanted, error.do
    else:
        got = f"a model, loss or optimizer that fails at {where}: {_reason(error)}"
        wanted, do = "one that takes these records", "correct the records, their labels or the model"
    known = f"the first {learned} records were learned" if learned else "nothing was learned"
    if chunk.offsets is not None and learned < len(chunk):
        learned = int(chunk.offsets[learned])
    elif chunk.offsets is not None:
        learned = chunk.span
    return LearningError(got=got, wanted=wanted, do=f"{do}; {known}", num_learned=learned)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shapes(inputs: Inputs) -> str:
    shapes: list[str] = []
    map_tensors(inputs, lambda part: shapes.append(f"shape {tuple(part.shape)} {part.dtype}"))
    return ", ".join(shapes)
