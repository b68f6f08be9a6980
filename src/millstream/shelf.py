"""Rows of several tensors that wait, each in a slot of its own."""

from __future__ import annotations

from torch import Tensor

from millstream.contracts import Inputs, State

__all__ = ["Shelf"]


class Shelf:
    """Rows of several tensors by slot. A slot that is given back is used again.

    >>> shelf = Shelf()
    >>> slots = torch.tensor([shelf.reserve(), shelf.reserve()])
    >>> shelf.put("known", slots, torch.tensor([0.5, 2.0]))
    >>> shelf.rows("known", slots[1:]).tolist()
    [2.0]
    """

    def __init__(self) -> None:
        self.columns: dict[str, Tensor] = {}
        self._free: list[int] = []
        self._num_slots = 0

    def reserve(self) -> int:
        if self._free:
            return self._free.pop()
        self._num_slots += 1
        return self._num_slots - 1

    def give_back(self, slots: list[int]) -> None:
        self._free.extend(slots)

    def put(self, name: str, slots: Tensor, values: Tensor) -> None:
        column = self.columns.get(name)
        if column is None or len(column) < self._num_slots:
            grown = values.new_zeros(max(64, 2 * self._num_slots), *values.shape[1:])
            if column is not None:
                grown[: len(column)] = column
            self.columns[name] = column = grown
        column[slots] = values.detach()

    def rows(self, name: str, slots: Tensor) -> Tensor:
        return self.columns[name][slots]

    def put_inputs(self, slots: Tensor, inputs: Inputs) -> None:
        assert isinstance(inputs, Tensor | dict), "features make a tensor, or a dict of them"
        for key, value in {"": inputs}.items() if isinstance(inputs, Tensor) else inputs.items():
            self.put(f"inputs.{key}", slots, value)

    def inputs(self, slots: Tensor) -> Inputs:
        names = [name for name in self.columns if name.startswith("inputs.")]
        rows = {name.removeprefix("inputs."): self.rows(name, slots) for name in names}
        return rows.get("", rows)

    def state_dict(self, slots: Tensor) -> State:
        return {name: self.rows(name, slots) for name in self.columns}

    def load_state_dict(self, state: State) -> None:
        """What was saved stands in the first slots."""
        self.columns, self._free = {name: column.clone() for name, column in state.items()}, []
        self._num_slots = max((len(column) for column in state.values()), default=0)
