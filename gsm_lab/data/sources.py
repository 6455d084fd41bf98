"""`load` and `fetch`: digits from scikit-learn, MNIST and Fashion-MNIST from a folder, the cache or a mirror."""

import contextlib
import gzip
import hashlib
import math
import os
import struct
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from gsm_lab import checks
from gsm_lab.checks import shown
from gsm_lab.data.dataset import Dataset
from gsm_lab.data.digits import digits
from gsm_lab.data.mirrors import MirrorFailed, get

ENVIRONMENT = "GSM_LAB_DATA"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIZE_LIMIT = 1 << 26  # bytes of content; the largest file has 47,040,016: a forged .gz must not fill the memory
_ABANDONED = 3600  # seconds after which nobody writes to a part of a download any more
_TIMEOUT = 10  # seconds without a sign of life from a mirror


class DataNotFound(OSError):
    """The data is neither on this computer nor to be had from a mirror."""


class DataCorrupted(OSError):
    """A file is damaged, or not the one its name promises."""


@dataclass(frozen=True)
class Source:
    """Where four IDX files come from; the digests are of their *uncompressed* content, in the order of `FILES`.

    The mirrors' .gz files may differ in their bytes, the content does not. Mirrors are tried in order.
    """

    mirrors: tuple[str, ...]
    sha256: tuple[str, str, str, str]


SOURCES: dict[str, Source] = {
    # LeCun, Cortes, Burges; CC BY-SA 3.0. Mirrors: torchvision's, and that of Google's Common Visual Data Foundation.
    "mnist": Source(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    # Xiao, Rasul, Vollgraf; MIT. Mirrors: Keras's, and the authors' repository. The digests are as published by several
    # independent projects that unpack .gz files with the authors' MD5; they were not recomputed here.
    "fashion_mnist": Source(
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}
NAMES = ("digits", *SOURCES)


def load(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """One of the data sets the project knows: "digits", "mnist" or "fashion_mnist"; images [n, 1, 28, 28] in 0..1.

    MNIST and Fashion-MNIST are looked for in `root`, or without it in the folder that the environment variable
    GSM_LAB_DATA names, either in its subfolder `name` or directly; then in the user's cache; else they are downloaded
    (to `root`/`name` if `root` is given, else to the cache). Every file's SHA-256 is checked.

    Raises ValueError for an unknown name, `DataNotFound` if there is no copy and no mirror answers, `DataCorrupted` if
    a local file is not what it should be.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {shown(name)}; valid: one of {', '.join(NAMES)}")
    if name == "digits":
        return digits()
    folder, contents = _obtain(name, root)
    arrays = [parse_idx(content, str(folder / file)) for file, content in zip(FILES, contents, strict=True)]
    return Dataset(*arrays, name=name)


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Have "mnist" or "fashion_mnist" on this computer, checked, downloading what is missing; returns the folder.

    Looks and downloads where `load` does, and raises what `load` raises.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {shown(name)}; valid: one of {', '.join(SOURCES)}")
    if name == "digits":
        raise ValueError(f"name is 'digits', which comes with scikit-learn; valid: {', '.join(SOURCES)}")
    return _obtain(name, root)[0]


def parse_idx(content: bytes, name: str = "content") -> np.ndarray:
    """The array in an uncompressed IDX file of unsigned bytes: uint8, read-only, of the shape its header gives.

    Header: two zero bytes, type (8 = unsigned byte), number of dimensions, then each as 4 bytes, big end first.
    Raises DataCorrupted naming `name` if it is something else, too short or too long.
    Source: LeCun, Cortes, Burges, "The MNIST database", section "The IDX file format".
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] == 0:
        raise DataCorrupted(f"{name} begins with {content[:4].hex(' ')!r}; valid: 00 00 08, number of dimensions")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataCorrupted(f"{name} is truncated: {len(content)} bytes, its header alone needs {start}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    size = start + math.prod(shape)
    if len(content) != size:
        problem = "is truncated" if len(content) < size else "goes on after its data"
        raise DataCorrupted(f"{name} {problem}: {len(content)} bytes, valid for shape {shape}: {size}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _obtain(name: str, root: str | os.PathLike[str] | None) -> tuple[Path, list[bytes]]:
    """Folder and checked contents of the four files, in the order of `FILES`; downloads what no folder has."""
    import pooch

    if name not in SOURCES:
        raise ValueError(f"name is {shown(name)}; valid: {', '.join(NAMES)}")
    if root is not None:
        checks.path("root", root)
    given = root if root is not None else os.environ.get(ENVIRONMENT) or None
    places = [] if given is None else [Path(given).expanduser() / name, Path(given).expanduser()]
    cache = Path(pooch.os_cache("gsm_lab")) / name
    for folder in (*places, cache):
        paths = [_present(folder, file) for file in FILES]
        if None in paths or _holds_another(folder, name):
            continue
        return folder, [_verified(name, i, path) for i, path in enumerate(paths) if path is not None]
    target = cache if root is None else places[0]
    found = ((i, _present(target, file)) for i, file in enumerate(FILES))
    return target, [_download(name, i, target) if path is None else _verified(name, i, path) for i, path in found]


def _present(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / f"{file}.gz", folder / file) if path.is_file()), None)


def _holds_another(folder: Path, name: str) -> bool:
    """Whether files found directly in the user's folder are another data set's: all of them use the same file names."""
    labels = _present(folder, FILES[3])
    if folder.name == name or labels is None:
        return False
    found = hashlib.sha256(_content(labels, name)).hexdigest()
    return any(found == source.sha256[3] for other, source in SOURCES.items() if other != name)


def _content(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as raw:  # the first bytes, not the suffix, tell: some servers unpack what they send
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            return file.read(_SIZE_LIMIT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataCorrupted(f"{path} is damaged ({error}); {_remedy(name)}") from None


def _remedy(name: str) -> str:
    return f"delete it and run `gsm-lab data {name}` to have a good copy"


def _verified(name: str, i: int, path: Path) -> bytes:
    content, expected = _content(path, name), SOURCES[name].sha256[i]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataCorrupted(
            f"{path} is not {name}'s {FILES[i]}: the SHA-256 of its content is {found}, valid: {expected}; "
            f"{_remedy(name)}"
        )
    return content


def _download(name: str, i: int, folder: Path) -> bytes:
    """Content of file `i`, from the first mirror that has the right one; in `folder` only once it is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{FILES[i]}.*.part"):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()
    part = folder / f".{FILES[i]}.{uuid.uuid4().hex[:8]}.part"
    problems = []
    for mirror in SOURCES[name].mirrors:
        try:
            get(f"{mirror}{FILES[i]}.gz", part, f"{name} {FILES[i]}", _SIZE_LIMIT, _TIMEOUT)
            content = _verified(name, i, part)
            os.replace(part, folder / f"{FILES[i]}.gz")
            return content
        except MirrorFailed as error:
            problems.append(f"{urlsplit(mirror).netloc}: {error}")
        except DataCorrupted:
            problems.append(f"{urlsplit(mirror).netloc}: wrong content")
        finally:
            part.unlink(missing_ok=True)
    now = os.environ.get(ENVIRONMENT)
    raise DataNotFound(
        f"{name} is not on this computer and could not be downloaded ({'; '.join(problems)}). Ways out: connect to the "
        f"internet and run `gsm-lab data {name}` once; or put {', '.join(f'{file}.gz' for file in FILES)} into a "
        f"folder and set {ENVIRONMENT} to it ({f'now {now!r}' if now else 'now not set'}); "
        'or use data="digits", which needs no download.'
    )
