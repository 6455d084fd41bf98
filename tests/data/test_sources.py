"""MNIST and its kin: the IDX format, mirrors, damaged files; against gzip and published counts."""

import contextlib
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
from hypothesis import given
from hypothesis import strategies as st

from gsm_lab.data import DataCorrupted, DataNotFound, Dataset, fetch, load, sources
from tests.data.files import untimed


def idx(array: np.ndarray) -> bytes:
    """The IDX format, written independently of the parser."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


# ------------------------------------------------------------------------------------------------ the real MNIST


@pytest.fixture(scope="module")
def mnist_root() -> Path:
    candidates = [os.environ.get(sources.ENVIRONMENT), Path(__file__).parents[3] / "shared" / "data"]
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
