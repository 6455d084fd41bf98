"""The sparse form: of each tensor only the weights that are left, row by row, with the columns they stand in.

A tensor `name` of shape [rows, ...] becomes three, which any reader of safetensors can have:

    name.values    the weights that are not zero, row by row, as they were to the bit
    name.columns   where each stands in its row: an index into the flattened rest of the shape
    name.counts    how many there are in each row

Columns and counts are of 8, 16 or 32 bits, the fewest that hold them. What would be no smaller so stays as it is, and
so does what has fewer than two dimensions. (This is compressed sparse row, CSR, of which the pointers are the sums of
the counts.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gsm_lab.checks import MOST

PARTS = ("values", "columns", "counts")
_WIDTHS = (torch.uint8, torch.uint16, torch.uint32)


def split(dense: Tensor) -> dict[str, Tensor] | None:
    """The three parts of a tensor [rows, ...]; None where these take no fewer bytes, or where it is no such tensor."""
    if dense.ndim < 2 or not dense.is_floating_point():
        return None
    rows = dense.detach().flatten(1)
    row, column = rows.ne(0).nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(rows))
    parts = {
        "values": rows[row, column],
        "columns": column.to(_width(rows.shape[1] - 1)),
        "counts": counts.to(_width(int(counts.max()) if len(counts) else 0)),
    }
    return parts if size(parts.values()) < size([dense]) else None


def joined(parts: Mapping[str, Tensor], shape: list[int]) -> Tensor:
    """The tensor again.

    Raises:
        ValueError: the parts do not go together, or not with the shape; nothing of the shape's size was made before.
    """
    values = parts["values"]
    if math.prod(shape) > MOST:
        raise ValueError(f"its shape {shape} holds more than {MOST:,} weights")
    if any(part.dtype not in _WIDTHS for part in (parts["columns"], parts["counts"])) or not values.is_floating_point():
        raise ValueError("its columns and counts are no unsigned integers, or its values no floats")
    width = math.prod(shape[1:])
    columns, counts = (parts[name].numpy().astype(np.int64) for name in ("columns", "counts"))
    if len(counts) != shape[0] or not counts.sum() == len(columns) == len(values):
        raise ValueError(f"it has {len(values):,} values, {len(columns):,} columns, and {counts.sum():,} by its counts")
    row = np.repeat(np.arange(shape[0]), counts)
    if len(columns) and columns.max() >= width:
        raise ValueError(f"a column is {columns.max():,} in rows of {width:,}")
    where = row * width + columns
    if (np.diff(where) <= 0).any():
        raise ValueError("columns of a row do not ascend")
    flat = torch.zeros(shape[0] * width, dtype=values.dtype)
    flat[torch.from_numpy(where)] = values
    return flat.reshape(shape)


def size(tensors: object) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _width(largest: int) -> torch.dtype:
    return next(width for width in _WIDTHS if largest <= torch.iinfo(width).max)
