"""Records as rows of tensors, dense or sparse. Torch itself neither indexes nor joins sparse CSR tensors by rows.

Shapes: N records, S columns, K numbers of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from millstream.errors import DataError

__all__ = ["by_rows", "csr", "join_rows", "rows_of"]


def by_rows(tensor: Tensor, name: str = "x") -> Tensor:
    """A tensor whose records can be told apart: as it is if it is dense, CSR if it is (N, S) sparse.

    Raises ``DataError`` for other layouts, and for CSR tensors with columns that they do not have.
    """
    if tensor.layout is torch.strided:
        return tensor
    shown = f"{name} of layout {str(tensor.layout).removeprefix('torch.')} and shape {tuple(tensor.shape)}"
    if tensor.layout is torch.sparse_coo and tensor.sparse_dim() == tensor.ndim == 2:
        return tensor.to_sparse_csr()
    if tensor.layout is not torch.sparse_csr or tensor.ndim != 2:
        raise DataError(got=shown, wanted="a dense tensor, or sparse rows (N, S)", do="convert it by .to_sparse_csr()")
    columns = tensor.col_indices()
    if len(columns):
        least, most = (int(end) for end in columns.aminmax())
        if least < 0 or most >= tensor.shape[1]:
            raise DataError(
                got=f"{shown} with column {least if least < 0 else most}",
                wanted=f"columns from 0 to {tensor.shape[1] - 1}",
                do="check how it was made",
            )
    return tensor


def rows_of(tensor: Tensor, rows: Tensor | slice) -> Tensor:
    """The records at ``rows`` (int64 places, or a slice) of a tensor; torch itself does not index CSR tensors by rows.

    >>> rows_of(torch.eye(3), torch.tensor([2, 0])).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if tensor.layout is not torch.sparse_csr:
        return tensor[rows]
    edges, columns, values = tensor.crow_indices(), tensor.col_indices(), tensor.values()
    first, last, step = rows.indices(len(tensor)) if isinstance(rows, slice) else (0, 0, 0)
    if step == 1:
        edges = edges[first : max(first, last) + 1]
        within: slice | Tensor = slice(int(edges[0]), int(edges[-1]))
        edges = edges - edges[0]
    else:
        index = torch.arange(len(tensor))[rows]
        starts, counts = edges[:-1][index], edges.diff()[index]
        edges = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=counts.dtype)])
        within = torch.repeat_interleave(starts - edges[:-1], counts) + torch.arange(int(edges[-1]))
    return csr(edges, columns[within], values[within], tensor.shape[1])


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """The records of several tensors, one after another.

    >>> join_rows([torch.zeros(1, 2), torch.ones(1, 2)]).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if parts[0].layout is not torch.sparse_csr:
        return torch.cat(list(parts))
    counts = torch.cat([part.crow_indices().diff() for part in parts])
    edges = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=counts.dtype)])
    columns, values = torch.cat([p.col_indices() for p in parts]), torch.cat([p.values() for p in parts])
    return csr(edges, columns, values, parts[0].shape[1])


def csr(edges: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """Sparse rows of (N + 1,) edges, and K columns and values between them."""
    size = (len(edges) - 1, num_columns)
    return torch.sparse_csr_tensor(edges, columns, values, size, check_invariants=False)
