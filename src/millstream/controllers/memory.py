"""The largest batch that fits the memory, found without a change to what is trained.

On a CPU it is computed, since a process that asks for too much is ended by the system: from the bytes that a record
leaves for the backward pass and the memory that is free. Elsewhere it is tried, as a device says when it is full.

Shapes: B records of a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from millstream.contracts import Chunk, map_tensors
from millstream.engines import UpdateRule
from millstream.engines.failures import OF_TORCH
from millstream.engines.randomness import kept_generators
from millstream.rows import rows_of

__all__ = ["bytes_per_record", "free_bytes", "largest_batch", "largest_that_runs"]

_SHARE = 0.5  # of the memory that is free
_COPIES = 3  # what is saved for the backward pass, the gradients of it, and what a product needs meanwhile
_MEMORY = Path("/proc/meminfo")
_GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def largest_batch(rule: UpdateRule, chunk: Chunk, most: int) -> int:
    """The largest power of two, ``most`` or fewer, of records like those of a prepared chunk that fit one update.

    Weights, gradients, statistics and random generators are as they were. Where nothing can be found out, ``most``.
    """
    most = 1 << max(0, most.bit_length() - 1)
    device = next((p.device for p in rule.model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        return largest_that_runs(rule, chunk, most)
    free, each = free_bytes(), bytes_per_record(rule, chunk)
    if free is None or not each:
        return most
    return min(most, 1 << max(0, int(_SHARE * free / each).bit_length() - 1))


def bytes_per_record(rule: UpdateRule, chunk: Chunk) -> int:
    """What one more record in an update takes: tensors that are saved for the backward pass, three times; 0: unknown.

    >>> from millstream import losses
    >>> model = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.Tanh(), torch.nn.Linear(100, 2))
    >>> rule = UpdateRule(model, losses.resolve("cross_entropy"), torch.optim.SGD(model.parameters()))
    >>> bytes_per_record(rule, Chunk(torch.randn(1, 10), torch.tensor([0])))
    1368
    """
    try:
        two, four = (_saved_bytes(rule, chunk, num) for num in (2, 4))
    except OF_TORCH:  # the update itself will say what is wrong
        return 0
    return _COPIES * max(0, four - two) // 2


def largest_that_runs(rule: UpdateRule, chunk: Chunk, most: int) -> int:
    """The half of the largest power of two whose forward and backward pass the device has room for, ``most`` at most.

    Half, since an optimizer's step and the records of the next chunk need room, too.
    """
    size = 1
    while size < most:
        try:
            _run(rule, chunk, 2 * size, backward=True)
        except torch.OutOfMemoryError:
            size //= 2
            break
        size *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(1, size)


def free_bytes() -> int | None:
    """The memory that this process may still take; None where the system does not say."""
    found = []
    if _MEMORY.exists():
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(1024 * int(lines["MemAvailable"].split()[0]))
    for group in _GROUPS:
        for limit, usage in _LIMITS:
            bound = _number(group / limit)
            if bound is not None:
                found.append(max(0, bound - (_number(group / usage) or 0)))
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _saved_bytes(rule: UpdateRule, chunk: Chunk, num: int) -> int:
    """Of the tensors that a forward pass of so many records saves, each once."""
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # or an address could be given out twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _run(rule, chunk, num, backward=False)
    return sum(sizes.values())


def _run(rule: UpdateRule, chunk: Chunk, num: int, *, backward: bool) -> None:
    """A forward pass of the first record ``num`` times over, and the gradients, which are dropped."""
    places = torch.zeros(num, dtype=torch.int64)
    inputs: Any = map_tensors(chunk.inputs, lambda part: rows_of(part, places))
    assert chunk.targets is not None
    buffers = [buffer.clone() for buffer in rule.model.buffers()]
    device = next((p.device for p in rule.model.parameters()), torch.device("cpu"))
    try:
        with kept_generators(device):
            loss = rule.loss(rule.model(inputs), chunk.targets[places]).mean()
            if backward:
                trained = [p for p in rule.model.parameters() if p.requires_grad]
                torch.autograd.grad(loss, trained, allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, value in zip(rule.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
