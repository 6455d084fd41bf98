"""`Dataset`: a training and a test set as four checked tensors, of labels or of numbers to be predicted."""

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsm_lab.checks import integer, shown
from gsm_lab.data import labels

_STREAM = 0x7A11  # of the seed, for validation(): apart from that of the batches, and from whatever else uses the seed
_FIELDS = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test set for classification or regression, wholly in memory.

    Arguments, as torch tensors, numpy arrays or anything `np.asarray` takes:
        train_x, test_x: [n, ...features], float or integer. Stored as float32 on the CPU; uint8 is divided by 255,
            every other type keeps its values. [n, height, width] becomes [n, 1, height, width].
        train_y, test_y: [n], integers 0 .. classes - 1, each of them present in `train_y`: labels, stored as int64. Or
            [n] or [n, k], floats: numbers to be predicted, stored as float32 [n, k]; [n] becomes [n, 1]. Floats that
            look like labels, 0.0, 1.0, ... or one-hot rows, are refused: [n, 1] says that numbers are meant.
        name: what to call the data in histories and reports.

    float32 and int64 input is shared, not copied. Raises TypeError (kind of data) or ValueError (shape, length, NaN or
    infinity, labels), naming the argument, what was found and what is valid.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    name: str = "mine"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name is {shown(self.name)}; valid: a string")
        raw = {field: _as_array(field, getattr(self, field)) for field in _FIELDS}
        regression = labels.are_targets(raw["train_y"], raw["test_y"])
        for part in ("train", "test"):
            x, y = raw[f"{part}_x"], raw[f"{part}_y"]
            _check_features(f"{part}_x", x)
            if regression:
                labels.check_targets(f"{part}_y", y)
            else:
                labels.check_labels(f"{part}_y", y)
            if len(x) != len(y):
                raise ValueError(
                    f"{part}_x has {len(x)} samples but {part}_y has {len(y)} labels; valid: one label each"
                )
        x, test_x = raw["train_x"], raw["test_x"]
        if x.shape[1:] != test_x.shape[1:]:
            raise ValueError(f"test_x has samples of shape {test_x.shape[1:]}; valid: that of train_x, {x.shape[1:]}")
        if (x.dtype == np.uint8) != (test_x.dtype == np.uint8):
            raise TypeError(
                f"train_x is {x.dtype} but test_x is {test_x.dtype}, and only uint8 is divided by 255; "
                "valid: both uint8 or neither"
            )
        if regression:
            labels.check_columns(raw["train_y"], raw["test_y"])
        else:
            labels.check_classes(raw["train_y"], raw["test_y"])
        for field, array in raw.items():
            if field.endswith("_x"):
                tensor = _to_float32(field, array)
                tensor = tensor[:, None] if tensor.ndim == 3 else tensor
            else:
                tensor = _to_float32(field, array).view(len(array), -1) if regression else _to_tensor(array, np.int64)
            object.__setattr__(self, field, tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, for example (1, 28, 28)."""
        return tuple(self.train_x.shape[1:])

    @property
    def regression(self) -> bool:
        """Whether numbers are to be predicted, float32 [n, k], and not labels."""
        return self.train_y.is_floating_point()

    @cached_property
    def classes(self) -> int:
        """Number of classes: the largest training label plus one. Raises AttributeError where there are none."""
        if self.regression:
            raise AttributeError(
                f"{self.name!r} has no classes: its targets are numbers, {self.outputs} a sample (see `outputs`)"
            )
        return int(self.train_y.max()) + 1

    @property
    def outputs(self) -> int:
        """How many numbers a model has to give for a sample: one a class, or k for targets [n, k]."""
        return self.train_y.shape[1] if self.regression else self.classes

    @property
    def mean(self) -> float:
        """Mean of all values of `train_x`."""
        return self._moments[0]

    @property
    def std(self) -> float:
        """Standard deviation of all values of `train_x`; 1.0 for constant data, so that dividing by it is harmless."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        # In float64 and numpy, piece by piece: the same digits whatever the number of threads, without a float64 copy.
        pieces = [piece.numpy() for piece in self.train_x.cpu().split(4096)]
        mean = sum(float(piece.sum(dtype=np.float64)) for piece in pieces) / self.train_x.numel()
        if min(piece.min() for piece in pieces) == max(piece.max() for piece in pieces):
            return mean, 1.0
        squares = sum(float(np.square(piece.astype(np.float64) - mean).sum()) for piece in pieces)
        return mean, (squares / self.train_x.numel()) ** 0.5

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of shapes and values, not of the name: tells whether data is the same."""
        sha = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            array = tensor.cpu().numpy()
            sha.update(repr(array.shape).encode())
            sha.update(memoryview(array).cast("B"))
        return sha.hexdigest()[:16]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """The same data on `device`, its features as `dtype` if given; tensors already there are shared, not copied.

        Mean, standard deviation and digest stay those of the data as it was.
        """
        if dtype not in (None, self.train_x.dtype):
            _ = self.digest, self._moments
        moved = copy.copy(self)  # keeps what is cached
        for field in _FIELDS:
            kind = dtype if field.endswith("_x") else None
            object.__setattr__(moved, field, getattr(self, field).to(device, kind))
        return moved

    def validation(self, n: int, seed: int = 0) -> "Dataset":
        """Split `n` samples off the training set to serve as test set: to choose settings without the real one.

        Stratified: each class gives its share of the `n`, rounded up or down, but keeps at least one for training.
        (Without classes they are drawn evenly, and one is left.) The order of the samples is kept. Raises ValueError
        unless 1 <= n <= training samples - classes.
        """
        count = len(self.train_y)
        least = 1 if self.regression else self.classes
        n, seed = integer("n", n, 1, count - least), integer("seed", seed, 0)
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,))).permutation(count)
        held = np.zeros(count, dtype=bool)
        if self.regression:
            held[order[:n]] = True
        else:
            held[self._stratified(n, order)] = True
        test, train = torch.from_numpy(held).to(self.train_x.device), torch.from_numpy(~held).to(self.train_x.device)
        x, y = self.train_x, self.train_y
        return Dataset(x[train], y[train], x[test], y[test], name=f"{self.name}-validation").to(x.device)

    def _stratified(self, n: int, order: np.ndarray) -> np.ndarray:
        """The first samples of each class in `order`, as many as are its share of `n`."""
        own = self.train_y.cpu().numpy()
        counts = np.bincount(own)
        share = n * counts / len(own)
        take = np.floor(share).astype(np.int64)
        for _ in range(n - int(take.sum())):  # largest remainders first, see Hamilton's method of apportionment
            take[np.where(take < counts - 1, share - take, -np.inf).argmax()] += 1
        return np.concatenate([order[own[order] == label][:k] for label, k in enumerate(take)])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        sizes = f"{len(self.train_y):,} training and {len(self.test_y):,} test samples of {shape}"
        what = "target" if self.regression and self.outputs == 1 else "targets" if self.regression else "classes"
        return f"Dataset({self.name!r}: {sizes}, {self.outputs} {what})"


def _as_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise TypeError(f"{name} has layout {value.layout}; valid: a dense tensor, see Tensor.to_dense()")
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()  # numpy knows no bfloat16
    try:
        array = np.asarray(value)
    except ValueError as error:  # numpy's words for nested lists of unequal length
        raise ValueError(f"{name} is no rectangular array: {error}") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"{name} is {type(value).__name__} of dtype {array.dtype}; valid: an array or tensor of numbers"
        )
    return array


def _check_features(name: str, x: np.ndarray) -> None:
    if x.dtype.kind not in "iuf":
        raise TypeError(f'{name} has dtype {x.dtype}; valid: float or integer, see .astype("float32") or .float()')
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {x.shape}; valid: at least two dimensions, [n, ...features]")
    if x.size == 0:
        raise ValueError(f"{name} is empty, its shape is {x.shape}; valid: at least one sample with one feature")


def _to_float32(name: str, x: np.ndarray) -> Tensor:
    # Division, not multiplication by 1/255, and numpy's: correctly rounded, so every CPU gets the same bits.
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, reported with its index
        x = np.divide(x, np.float32(255), dtype=np.float32) if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
    if not (finite := np.isfinite(x)).all():
        first = np.unravel_index(int(finite.argmin()), x.shape)
        index = ", ".join(map(str, first))
        raise ValueError(f"{name} has {x[first]} at index [{index}]; valid: finite numbers within the range of float32")
    return _to_tensor(x, np.float32)


def _to_tensor(array: np.ndarray, dtype: type) -> Tensor:
    array = np.ascontiguousarray(array, dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
