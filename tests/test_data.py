"""Data sets, their sources and the order of batches, against sklearn, torch, gzip and published counts as oracles."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gsm_lab.data import Batches, DataCorrupted, DataNotFound, Dataset, digits, fetch, load, sources

untimed = settings(deadline=None)


def idx(array: np.ndarray) -> bytes:
    """The IDX format, written independently of the parser."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def small(n: int = 30, classes: int = 3, shape: tuple[int, ...] = (4,)) -> Dataset:
    x = np.arange(n * int(np.prod(shape)), dtype=np.float32).reshape(n, *shape)
    return Dataset(x, np.arange(n) % classes, x[:classes], np.arange(classes))


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


# ------------------------------------------------------------------------------------------------ Batches


@untimed
@given(n=st.integers(1, 60), part=st.floats(0, 1), seed=st.integers(0, 2**64), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_each_sample_at_most_once(n: int, part: float, seed: int, epoch: int) -> None:
    size = max(1, round(part * n))
    batches = Batches(small(n, classes=1), size, seed)
    assert len(batches) == n // size
    steps = [batches.indices(epoch * len(batches) + i) for i in range(len(batches))]
    assert all(step.shape == (size,) and step.dtype == torch.int64 for step in steps)
    visited = torch.cat(steps).tolist()
    assert len(set(visited)) == len(visited) == size * (n // size)
    assert set(visited) <= set(range(n))


@untimed
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(0, 2**40))
def test_any_order_of_access_equals_the_sequential_one(steps: list[int], seed: int) -> None:
    data = small(23)
    sequential = Batches(data, 5, seed)
    expected = [sequential.indices(step).tolist() for step in range(201)]
    jumping = Batches(data, 5, seed)
    assert [jumping.indices(step).tolist() for step in steps] == [expected[step] for step in steps]


def test_batch_is_rows_of_the_training_set() -> None:
    data = small(20, shape=(1, 2, 2))
    batches = Batches(data, 6, seed=3)
    for step in (0, 2, 3, 100):
        x, y = batches.batch(step)
        rows = batches.indices(step)
        assert torch.equal(x, data.train_x[rows]) and torch.equal(y, data.train_y[rows])


def test_a_caller_cannot_change_the_order() -> None:
    batches = Batches(small(20), 6, seed=3)
    expected = batches.indices(1).tolist()
    batches.indices(1).zero_()
    assert batches.indices(1).tolist() == expected


def test_epochs_and_seeds_differ_also_where_they_could_be_mixed_up() -> None:
    data = small(200)
    orders = {
        tuple(Batches(data, 200, seed).indices(epoch).tolist())
        for seed in (0, 1, 2, 2**32, 2**64)
        for epoch in range(5)
    }
    assert len(orders) == 25
    plain = np.random.SeedSequence(0)  # what others make of the same seed
    for other in (plain, *plain.spawn(3), np.random.SeedSequence([0, 1])):
        assert tuple(np.random.default_rng(other).permutation(200).tolist()) not in orders


def test_batches_leave_the_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Batches(small(), 4, 0).batch(50)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_positions_are_uniform() -> None:
    first = [int(Batches(small(10), 1, seed).indices(epoch * 10)[0]) for seed in range(30) for epoch in range(30)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 90) ** 2 / 90).sum() < 27.9  # chi-square with 9 degrees of freedom, 99.9%; the draw is fixed


@pytest.mark.parametrize(
    ("batch_size", "seed", "error", "message"),
    [
        (31, 0, ValueError, "batch_size is 31; valid: an integer in 1 .. 30"),
        (0, 0, ValueError, "batch_size is 0; valid: an integer in 1 .. 30"),
        (2.0, 0, TypeError, "batch_size is 2.0; valid: an integer in 1 .. 30"),
        (True, 0, TypeError, "batch_size is True; valid: an integer in 1 .. 30"),
        (4, -1, ValueError, "seed is -1; valid: an integer >= 0"),
        (4, None, TypeError, "seed is None; valid: an integer >= 0"),
    ],
)
def test_batches_refuse(batch_size: int, seed: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Batches(small(), batch_size, seed)
    assert str(caught.value) == message


def test_step_is_checked_and_may_be_numpys() -> None:
    batches = Batches(small(), np.int64(4), np.uint32(1))
    assert torch.equal(batches.indices(np.int64(3)), batches.indices(3))
    with pytest.raises(ValueError, match="step is -1; valid: an integer >= 0"):
        batches.batch(-1)


# ------------------------------------------------------------------------------------------------ digits


def test_digits_is_sklearns_resized_like_torch_and_centred() -> None:
    data, bunch = load("digits"), load_digits()
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    assert data.train_x.shape == (1437, 1, 28, 28) and data.test_x.shape == (360, 1, 28, 28)
    assert x.min() == 0 and x.max() == 1 and (data.name, data.classes) == ("digits", 10)
    border = x.clone()
    border[:, :, 4:24, 4:24] = 0
    assert not border.any()
    original = torch.from_numpy(bunch.images).float()[:, None] / 16
    resized = torch.nn.functional.interpolate(original, size=20, mode="bilinear", align_corners=False)

    def keys(images: torch.Tensor, labels: torch.Tensor | np.ndarray) -> list[tuple[int, ...]]:
        rows = torch.round(images.reshape(len(images), -1).double() * 1600).long()  # all values are multiples of 1/1600
        return sorted((int(label), *row) for label, row in zip(labels, rows.tolist(), strict=True))

    assert keys(x[:, :, 4:24, 4:24], y) == keys(resized, bunch.target)  # each original once, with its label


def test_digits_split_is_stratified_and_fixed() -> None:
    data = load("digits")
    whole = np.bincount(load_digits().target)
    train, test = np.bincount(data.train_y), np.bincount(data.test_y)
    np.testing.assert_array_equal(train + test, whole)
    assert (np.abs(test - 360 * whole / 1797) < 1).all()
    assert data.digest == "6c34710d567a5e2e"  # on every CPU: saved runs are resumed by it
    rows, target = np.arange(1797), load_digits().target
    for ours, sklearns in zip(
        digits._split(target), train_test_split(rows, test_size=360, stratify=target, random_state=0), strict=True
    ):
        np.testing.assert_array_equal(ours, sklearns)


def test_digits_need_no_scikit_learn_but_its_file(monkeypatch) -> None:
    code = (
        "import sys, gsm_lab.data as d; d.load('digits'); print([m for m in ('sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'sklearn'"):
        digits.digits.__wrapped__()


# ------------------------------------------------------------------------------------------------ the real MNIST


@pytest.fixture(scope="module")
def mnist_root() -> Path:
    candidates = [os.environ.get(sources.ENVIRONMENT), Path(__file__).parents[2] / "shared" / "data"]
    for root in map(Path, filter(None, candidates)):
        if (root / "mnist" / "train-images-idx3-ubyte.gz").is_file():
            return root
    pytest.skip(f"no MNIST: set {sources.ENVIRONMENT}")


def test_mnist_has_the_published_numbers(mnist_root: Path) -> None:
    data = load("mnist", mnist_root)
    assert data.train_x.shape == (60000, 1, 28, 28) and data.test_x.shape == (10000, 1, 28, 28)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train_y).tolist() == counts
    assert np.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.mean, data.std) == (pytest.approx(0.1307, abs=5e-5), pytest.approx(0.3081, abs=5e-5))
    assert data.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    assert fetch("mnist", mnist_root) == mnist_root / "mnist"


# ------------------------------------------------------------------------------------------------ IDX


def test_idx_parser_on_a_file_made_by_hand() -> None:
    content = bytes.fromhex("00000803 00000002 00000001 00000003 010203 fffefd")
    np.testing.assert_array_equal(sources.parse_idx(content), [[[1, 2, 3]], [[255, 254, 253]]])


@untimed
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_idx_round_trip(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    parsed = sources.parse_idx(idx(array))
    assert parsed.shape == tuple(shape) and parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@untimed
@given(st.integers(0, 11 + 6), st.binary(min_size=1, max_size=3))
def test_idx_of_another_length_is_refused(cut: int, more: bytes) -> None:
    content = idx(np.ones((2, 3)))
    with pytest.raises(DataCorrupted, match=r"^f (is truncated|begins with)"):
        sources.parse_idx(content[:cut], "f")
    with pytest.raises(DataCorrupted, match=rf"^f goes on after its data: {18 + len(more)} bytes.*\(2, 3\): 18$"):
        sources.parse_idx(content + more, "f")


@pytest.mark.parametrize("head", ["", "1f8b0800", "00000d03", "00000800", "01000803"])
def test_idx_of_another_kind_is_refused(head: str) -> None:
    with pytest.raises(DataCorrupted, match=r"begins with .*valid: 00 00 08"):
        sources.parse_idx(bytes.fromhex(head) + bytes(40))


# ------------------------------------------------------------------------------------------------ sources

RNG = np.random.default_rng(0)
SMALL = {
    file: idx(RNG.integers(0, 256, (n, 28, 28)) if "images" in file else np.arange(n) % 10)
    for file, n in zip(sources.FILES, (20, 20, 10, 10), strict=True)
}
DIGESTS = tuple(hashlib.sha256(content).hexdigest() for content in SMALL.values())
BOMB = gzip.compress(bytes((1 << 26) + 2), compresslevel=1)  # longer than the reader's limit
ENDLESS = 1 << 28
NONSENSE = {  # headers of a mirror
    "words": {"Content-Length": "abc"},
    "below-zero": {"Content-Length": "-5"},
    "packed": {"Content-Encoding": "gzip"},
    "chunks": {"Transfer-Encoding": "chunked"},
}
HTTPS_MIRRORS = {name: source.mirrors for name, source in sources.SOURCES.items()}


class Server:
    """A web server on loopback: each folder is a mirror, whose `behaviour` says how to answer for a file."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.sent = 0  # bytes of what is endless
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                mirror, file = self.path.strip("/").split("/")
                outer.answer(self, mirror, SMALL[file.removesuffix(".gz")])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, mirror: str, content: bytes) -> None:
        body = gzip.compress(content, compresslevel=1)
        status, length, headers = 200, len(body), {}
        if mirror == "absent":
            status = 404
        elif mirror == "forged":
            body = gzip.compress(content[:-1] + b"\x2a\x2a")
            length = len(body)
        elif mirror == "page":  # as a hotel's login page
            body, length = b"<html>", 6
        elif mirror == "cut":  # the connection breaks
            body = body[:-20]
        elif mirror == "short":  # half a file, called a whole one
            body = body[:-20]
            length = len(body)
        elif mirror == "bomb":
            body = BOMB
            length = len(body)
        elif mirror == "endless":
            headers = {"Content-Length": str(10 * ENDLESS)}
        elif mirror in NONSENSE:
            headers, body = NONSENSE[mirror], b"what the headers say does not hold"
        elif mirror == "unpacked":
            headers = {"Content-Encoding": "gzip"}
        elif mirror == "moved":
            status, headers = 302, {"Location": f"{self.url}/followed/{request.path.split('/')[-1]}"}
            body, length = b"", 0
        request.send_response(status)
        for key, value in ({"Content-Length": str(length)} | headers).items():
            request.send_header(key, value)
        request.end_headers()
        with contextlib.suppress(OSError):  # nobody listens any more
            request.wfile.write(body)
            while mirror == "endless" and self.sent < ENDLESS:
                self.sent += request.wfile.write(bytes(1 << 16))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and "mnist" as four tiny files."""
    monkeypatch.delenv(sources.ENVIRONMENT, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "gsm_lab" / "mnist"


@pytest.fixture
def mirrors(server: Server, cache: Path, monkeypatch):
    def use(*names: str) -> Server:
        urls = tuple(f"{server.url}/{name}/" for name in names)
        monkeypatch.setitem(sources.SOURCES, "mnist", sources.Source(urls, DIGESTS))
        server.requests.clear()
        return server

    use()
    return use


def offline(monkeypatch, name: str = "mnist") -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    closed = "http://127.0.0.1:9/"  # the discard port: nobody listens there
    sha256 = sources.SOURCES[name].sha256
    monkeypatch.setitem(sources.SOURCES, name, sources.Source((closed, closed), sha256))


def place(folder: Path, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in SMALL.items():
        (folder / f"{file}.gz" if packed else folder / file).write_bytes(gzip.compress(content) if packed else content)
    return folder


def is_small(data: Dataset) -> bool:
    images = [np.frombuffer(SMALL[sources.FILES[i]], np.uint8, offset=16).reshape(-1, 1, 28, 28) for i in (0, 2)]
    labels = [np.frombuffer(SMALL[sources.FILES[i]], np.uint8, offset=8) for i in (1, 3)]
    return (
        np.array_equal(data.train_x, images[0].astype(np.float32) / np.float32(255))
        and np.array_equal(data.test_x, images[1].astype(np.float32) / np.float32(255))
        and np.array_equal(data.train_y, labels[0])
        and np.array_equal(data.test_y, labels[1])
    )


def test_shipped_mirrors_are_https_and_at_least_two() -> None:
    for name, urls in HTTPS_MIRRORS.items():
        hosts = {url.split("/")[2] for url in urls}
        assert len(hosts) >= 2, name
        assert all(url.startswith("https://") and url.endswith("/") for url in urls), name
    for source in sources.SOURCES.values():
        assert all(len(digest) == 64 and int(digest, 16) for digest in source.sha256)
    everything = [digest for source in sources.SOURCES.values() for digest in source.sha256]
    assert len(set(everything)) == len(everything) == 8


def test_a_good_mirror_fills_the_cache_once(mirrors, cache: Path) -> None:
    server = mirrors("good", "absent")
    data = load("mnist")
    assert is_small(data) and data.name == "mnist" and data.shape == (1, 28, 28)
    assert server.requests == [f"/good/{file}.gz" for file in sources.FILES]
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{file}.gz" for file in sources.FILES)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {
        0o666 & ~umask
    }  # others may read a shared folder
    assert load("mnist").digest == data.digest and fetch("mnist") == cache
    assert len(server.requests) == 4


@pytest.mark.parametrize("bad", ["absent", "forged", "page", "cut", "short", "bomb", "moved", *NONSENSE])
def test_the_next_mirror_is_tried_and_a_bad_file_never_arrives(mirrors, cache: Path, bad: str) -> None:
    server = mirrors(bad, "good")
    assert fetch("mnist") == cache
    assert server.requests == [f"/{mirror}/{file}.gz" for file in sources.FILES for mirror in (bad, "good")]
    assert is_small(load("mnist"))
    server = mirrors(bad, bad)
    for path in cache.iterdir():
        path.unlink()
    with pytest.raises(DataNotFound):
        fetch("mnist")
    assert list(cache.iterdir()) == []  # no partial file, under no name
    assert len(server.requests) == 2


def test_no_more_is_taken_than_a_file_can_have(mirrors, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "_SIZE_LIMIT", 1 << 20)
    server = mirrors("endless", "absent")
    with pytest.raises(DataNotFound, match=r"127\.0\.0\.1:\d+: more than 1,048,576 bytes; .*: HTTPError"):
        fetch("mnist")
    assert server.sent < ENDLESS // 4 and list(cache.iterdir()) == []


def test_what_a_killed_download_left_goes_when_nobody_writes_to_it_any_more(mirrors, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = (cache / f".{sources.FILES[0]}.{name}.part" for name in ("0123abcd", "4567abcd"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    mirrors("good")
    fetch("mnist")
    assert new.exists() and not old.exists(), "the other one may be under way"


def test_a_mirror_that_unpacks_on_the_way_is_understood(mirrors) -> None:
    mirrors("unpacked")
    assert is_small(load("mnist")) and is_small(load("mnist"))


def test_interrupted_download_leaves_no_file(mirrors, cache: Path, monkeypatch) -> None:
    mirrors("good")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist")
    assert list(cache.iterdir()) == []


def test_only_what_is_missing_is_downloaded(mirrors, cache: Path) -> None:
    place(cache)
    (cache / f"{sources.FILES[2]}.gz").unlink()
    server = mirrors("good")
    assert fetch("mnist") == cache
    assert server.requests == [f"/good/{sources.FILES[2]}.gz"]


def test_progress_bar_on_a_terminal_only(mirrors, cache: Path, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        mirrors("good")
        fetch("mnist")
        assert ("mnist train-images-idx3-ubyte:" in stream.getvalue() and "B/s" in stream.getvalue()) is shown
        assert shown or stream.getvalue() == ""
        for path in cache.iterdir():
            path.unlink()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", ["mnist", ""])
@pytest.mark.parametrize("how", ["root", "environment"])
def test_local_folder_needs_no_mirror(
    mirrors, tmp_path: Path, monkeypatch, packed: bool, inside: str, how: str
) -> None:
    server = mirrors("good")
    folder = place(tmp_path / "given" / inside, packed)
    if how == "environment":
        monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "given"))
    root = tmp_path / "given" if how == "root" else None
    assert is_small(load("mnist", root))
    assert fetch("mnist", root) == folder
    assert server.requests == []


def test_root_comes_before_the_environment_before_the_cache(mirrors, cache: Path, tmp_path: Path, monkeypatch) -> None:
    mirrors("good")
    place(cache)
    assert fetch("mnist") == cache
    monkeypatch.setenv(sources.ENVIRONMENT, "")
    assert fetch("mnist") == cache
    monkeypatch.setenv(sources.ENVIRONMENT, str(tmp_path / "environment"))
    assert fetch("mnist") == cache  # nothing in that folder
    environment = place(tmp_path / "environment" / "mnist")
    assert fetch("mnist") == environment
    root = place(tmp_path / "root" / "mnist")
    assert fetch("mnist", tmp_path / "root") == root


def test_files_of_one_data_set_are_not_taken_for_the_other(mirrors, tmp_path: Path, monkeypatch) -> None:
    mirrors("good")
    offline(monkeypatch, "fashion_mnist")
    monkeypatch.setenv(sources.ENVIRONMENT, str(place(tmp_path / "bare")))
    assert fetch("mnist") == tmp_path / "bare"  # the files directly in the folder
    with pytest.raises(DataNotFound, match="fashion_mnist is not on this computer"):
        load("fashion_mnist")


def test_download_goes_to_root_if_given(mirrors, cache: Path, tmp_path: Path) -> None:
    mirrors("good")
    assert fetch("mnist", str(tmp_path / "new")) == tmp_path / "new" / "mnist"
    assert len(list((tmp_path / "new" / "mnist").iterdir())) == 4 and not cache.exists()


def test_damaged_local_file_is_named_with_what_to_do(mirrors, cache: Path) -> None:
    server = mirrors("good")
    victim = place(cache) / f"{sources.FILES[1]}.gz"
    good = victim.read_bytes()
    other = SMALL[sources.FILES[1]][:-1] + b"\x05"
    victim.write_bytes(gzip.compress(other))
    with pytest.raises(DataCorrupted) as caught:
        load("mnist")
    found = hashlib.sha256(other).hexdigest()
    for words in (str(victim), found, DIGESTS[1], "delete it and run `gsm-lab data mnist`"):
        assert words in str(caught.value)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    for damaged in (good[:-5], good[:15], bytes(flipped), b"", good[:2]):
        victim.write_bytes(damaged)
        with pytest.raises(DataCorrupted) as caught:
            fetch("mnist")
        assert str(victim) in str(caught.value) and "gsm-lab data mnist" in str(caught.value)
    assert server.requests == []
    victim.unlink()  # what the message says to do
    assert is_small(load("mnist"))


def test_offline_names_the_three_ways_out(mirrors, cache: Path, monkeypatch) -> None:
    offline(monkeypatch)
    monkeypatch.setenv(sources.ENVIRONMENT, "/mistyped")
    with pytest.raises(DataNotFound) as caught:
        load("mnist")
    message = str(caught.value)
    for words in (
        "`gsm-lab data mnist`",
        "GSM_LAB_DATA",
        "/mistyped",
        *sources.FILES,
        'data="digits"',
        "ConnectionError",
    ):
        assert words in message
    assert "\n" not in message and len(message) < 600
    assert isinstance(caught.value, OSError)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_not_blamed_on_the_mirrors(mirrors, cache: Path, monkeypatch) -> None:
    mirrors("good", "good")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        fetch("mnist")
    assert list(cache.iterdir()) == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="name is 'cifar'; valid: digits, mnist, fashion_mnist"):
        load("cifar")
    with pytest.raises(ValueError, match="valid: digits, mnist, fashion_mnist"):
        fetch("cifar")
    with pytest.raises(ValueError, match="'digits', which comes with scikit-learn; valid: mnist, fashion_mnist"):
        fetch("digits")


def test_importing_the_room_is_cheap() -> None:
    heavy = ("sklearn", "pooch", "requests", "tqdm", "pandas", "plotly", "ipywidgets")
    code = (
        "import sys, torch; before = set(sys.modules); import gsm_lab.data; "
        f"print([m for m in {heavy} if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
