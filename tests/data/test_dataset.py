"""`Dataset` against numpy and torch."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gsm_lab.data import Dataset
from tests.data.files import small, untimed

# ------------------------------------------------------------------------------------------------ Dataset


def test_dataset_converts_to_contiguous_float32_and_int64() -> None:
    x = np.arange(48, dtype=np.float64).reshape(4, 6, 2)[:, ::-1]  # negative stride
    y = np.array([0, 1, 0, 1], dtype=np.uint8)
    data = Dataset(x, y, torch.ones(1, 6, 2, dtype=torch.bfloat16), [1], name="odd")
    assert data.train_x.dtype == data.test_x.dtype == torch.float32
    assert data.train_y.dtype == data.test_y.dtype == torch.int64
    assert data.train_x.is_contiguous()
    np.testing.assert_array_equal(data.train_x[:, 0], x)
    assert (data.shape, data.classes, data.name) == ((1, 6, 2), 2, "odd")  # three dimensions get a channel axis
    assert repr(data) == "Dataset('odd': 4 training and 1 test samples of 1x6x2, 2 classes)"


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4), (3, 4, 4), (2, 3, 4, 4)])
def test_dataset_keeps_other_shapes(shape: tuple[int, ...]) -> None:
    assert small(shape=shape).shape == shape


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_only_uint8_is_scaled(kind: str) -> None:
    bytes_ = np.array([[0, 51], [255, 1]], dtype=np.uint8)
    make = torch.from_numpy if kind == "torch" else np.asarray
    data = Dataset(make(bytes_), [0, 1], make(bytes_), [0, 1])
    np.testing.assert_array_equal(data.train_x, bytes_.astype(np.float32) / np.float32(255))
    plain = Dataset(make(bytes_.astype(np.int64)), [0, 1], make(bytes_.astype(np.float32)), [0, 1])
    np.testing.assert_array_equal(plain.train_x, bytes_)
    np.testing.assert_array_equal(plain.test_x, bytes_)


def test_dataset_shares_ready_input_copies_read_only_and_detaches() -> None:
    x, y = torch.ones(2, 3, requires_grad=True), torch.tensor([0, 1])
    data = Dataset(x, y, np.broadcast_to(np.float32(1), (2, 3)), y)
    assert data.train_x.data_ptr() == x.data_ptr() and not data.train_x.requires_grad
    data.test_x.add_(1)  # would be undefined behaviour on memory numpy calls read-only


def test_dataset_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().name = "other"  # type: ignore[misc]


X, Y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])


def spoiled(value: float, *index: int) -> np.ndarray:
    x = X.astype(np.float64)
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train_x": X[:, 0]}, ValueError, ["train_x", "(4,)", "[n, ...features]"]),
        ({"test_x": np.float32(3)}, ValueError, ["test_x", "()"]),
        ({"train_x": X[:0], "train_y": Y[:0]}, ValueError, ["train_x", "empty", "(0, 2)"]),
        ({"test_x": X[:, :0]}, ValueError, ["test_x", "empty"]),
        ({"train_x": X > 0}, TypeError, ["train_x", "bool", "float32"]),
        ({"train_x": X.astype(complex)}, TypeError, ["train_x", "complex128"]),
        ({"train_x": X.astype(str)}, TypeError, ["train_x", "numbers"]),
        ({"train_x": None}, TypeError, ["train_x", "NoneType"]),
        ({"train_x": [[1.0], [1.0, 2.0]]}, ValueError, ["train_x", "rectangular"]),
        ({"train_x": torch.zeros(4, 2).to_sparse()}, TypeError, ["train_x", "to_dense"]),
        ({"train_x": spoiled(np.nan, 2, 1)}, ValueError, ["train_x", "nan", "[2, 1]", "finite"]),
        ({"test_x": spoiled(-np.inf, 0, 1)}, ValueError, ["test_x", "-inf", "[0, 1]"]),
        ({"test_x": spoiled(1e300, 3, 0)}, ValueError, ["test_x", "[3, 0]", "float32"]),
        ({"test_x": X[:, :1]}, ValueError, ["test_x", "(1,)", "(2,)"]),
        ({"train_x": X.astype(np.uint8)}, TypeError, ["train_x", "uint8", "test_x", "float32", "255"]),
        ({"train_y": Y[:3]}, ValueError, ["train_x", "4 samples", "train_y", "3 labels"]),
        ({"train_y": Y[:, None]}, ValueError, ["train_y", "(4, 1)", "reshape(-1)"]),
        ({"train_y": np.eye(2)[Y]}, ValueError, ["train_y", "(4, 2)", "argmax(1)"]),
        ({"test_y": Y[:0]}, ValueError, ["test_y", "empty"]),
        ({"train_y": Y.astype(float)}, TypeError, ["train_y", "float64", 'astype("int64")', "long()"]),
        ({"train_y": Y > 0}, TypeError, ["train_y", "bool"]),
        ({"train_y": torch.tensor([0, 1, -2, 0])}, ValueError, ["train_y", "-2", "index 2", "classes - 1"]),
        ({"test_y": Y - 1}, ValueError, ["test_y", "-1", "index 0"]),
        ({"train_y": Y + 1}, ValueError, ["train_y", "none of 0;", "np.unique"]),
        ({"train_y": np.array([0, 3, 0, 3])}, ValueError, ["train_y", "none of 1, 2;"]),
        ({"train_y": np.array([0, 1, 0, 1 << 40])}, ValueError, ["train_y", str(1 << 40), "4 samples"]),
        ({"test_y": np.array([0, 1, 2, 2])}, ValueError, ["test_y", "2", "index 2", "0 .. 1"]),
        ({"name": 3}, TypeError, ["name", "3", "string"]),
    ],
)
def test_dataset_refuses(changes: dict, error: type[Exception], words: list[str]) -> None:
    arguments = {"train_x": X, "train_y": Y, "test_x": X, "test_y": Y} | changes
    with pytest.raises(error) as caught:
        Dataset(**arguments)
    for word in words:
        assert word in str(caught.value)


@untimed
@given(st.integers(1, 9000), st.floats(-100, 100), st.integers(0, 99))
def test_moments_are_those_of_numpy(n: int, offset: float, seed: int) -> None:
    x = (np.random.default_rng(seed).normal(size=(n, 2)) + offset).astype(np.float32)
    data = Dataset(x, np.zeros(n, int), x, np.zeros(n, int))
    assert data.mean == pytest.approx(x.mean(dtype=np.float64), abs=1e-9)
    assert data.std == pytest.approx(x.std(dtype=np.float64), abs=1e-9)
    assert isinstance(data.mean, float) and isinstance(data.std, float)


def test_std_of_constant_data_is_one() -> None:
    x = np.full((7001, 1), 0.1, np.float32)  # its float64 mean is not exactly 0.1
    data = Dataset(x, np.zeros(7001, int), x, np.zeros(7001, int))
    assert data.std == 1.0 and data.mean == pytest.approx(0.1)


def test_digest_depends_on_content_and_shape_only() -> None:
    data = small()
    assert len(data.digest) == 16 and int(data.digest, 16) >= 0
    arguments = {field: getattr(data, field).clone() for field in ("train_x", "train_y", "test_x", "test_y")}
    assert Dataset(**arguments, name="renamed").digest == data.digest
    for field, tensor in arguments.items():
        other = tensor.clone()
        other[1] = other[0]
        assert Dataset(**arguments | {field: other}).digest != data.digest, field
    flat = {field: x.reshape(-1, 2, 2) if field.endswith("_x") else x for field, x in arguments.items()}
    assert Dataset(**flat).digest != data.digest


def test_to_moves_everything_and_keeps_the_digest() -> None:
    data = small()
    digest = data.digest
    moved = data.to("meta")  # a device without memory: whatever is not kept could not be computed there
    assert {t.device.type for t in (moved.train_x, moved.train_y, moved.test_x, moved.test_y)} == {"meta"}
    assert moved.digest == digest and moved.name == data.name
    assert data.train_x.device.type == "cpu"
    assert data.to("cpu").train_x.data_ptr() == data.train_x.data_ptr()


@untimed
@given(st.data())
def test_validation_is_a_stratified_partition(draw: st.DataObject) -> None:
    counts = draw.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5).filter(lambda c: sum(c) > len(c)))
    n = draw.draw(st.integers(1, sum(counts) - len(counts)))
    seed = draw.draw(st.integers(0, 2**70))
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.arange(len(y), dtype=np.float32)[:, None]  # a sample's value is its index
    whole = Dataset(x, y, x, y)
    part = whole.validation(n, seed)
    train, held = part.train_x[:, 0].long(), part.test_x[:, 0].long()
    assert len(held) == n
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(y)))
    assert train.tolist() == sorted(train.tolist()) and held.tolist() == sorted(held.tolist())
    np.testing.assert_array_equal(part.train_y, y[train])
    np.testing.assert_array_equal(part.test_y, y[held])
    taken, share = np.bincount(part.test_y, minlength=len(counts)), n * np.array(counts) / len(y)
    assert part.classes == len(counts) and (np.bincount(part.train_y) >= 1).all()
    room = share + 1 <= np.array(counts) - 1  # a class about to be used up may hand its share to others
    if room.all():
        assert (np.abs(taken - share) < 1).all()
    assert whole.validation(n, seed).digest == part.digest


def test_validation_depends_on_the_seed_and_refuses_nonsense() -> None:
    data = small(300)
    assert data.validation(30, 0).digest != data.validation(30, 1).digest
    for n in (0, 298, -1):
        with pytest.raises(ValueError, match=rf"n is {n}; valid: an integer in 1 \.\. 297"):
            data.validation(n)
    with pytest.raises(TypeError, match=r"n is 0\.1; valid"):
        data.validation(0.1)  # type: ignore[arg-type]
