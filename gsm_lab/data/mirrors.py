"""One file from one server: over HTTP, not beyond a size, and what the server does wrong told from the disk."""

from __future__ import annotations

import io
import os
from pathlib import Path


class MirrorFailed(Exception):
    """What a mirror, or the way to it, did wrong; the message is short. (This computer's disk raises OSError.)"""


class _Limited(io.BufferedWriter):
    """A new file that takes no more than so many bytes, whatever is sent."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.most = most

    def write(self, piece: bytes) -> int:
        if self.tell() + len(piece) > self.most:
            raise MirrorFailed(f"more than {self.most:,} bytes")
        return super().write(piece)


def get(url: str, path: Path, what: str, most: int, timeout: float) -> None:
    """Have `url` in the file `path`, with a progress bar that says `what`.

    Args:
        most: bytes that are taken; a server may send without end.
        timeout: seconds to wait for a sign of life.

    Raises MirrorFailed, and OSError where the file cannot be written; `path` may then hold a part.
    """
    from http.client import HTTPException

    import pooch
    import requests
    from tqdm.auto import tqdm
    from urllib3.exceptions import HTTPError

    # total: pooch sets the true one, but takes a bar without any for "no bar". disable: no bar in a log file.
    bar = tqdm(desc=what, total=1, unit="B", unit_scale=True, disable=None, leave=False)
    with bar, _Limited(path, most) as file:
        # A redirect could lead to plain HTTP; no mirror of ours needs one.
        download = pooch.HTTPDownloader(bar, chunk_size=1 << 16, timeout=timeout, allow_redirects=False)
        try:
            download(url, file, None)
        except (
            requests.RequestException,
            HTTPError,
            HTTPException,
            ConnectionError,
            TimeoutError,
            ValueError,
        ) as error:
            # ValueError: headers that are no numbers, or no text
            raise MirrorFailed(type(error).__name__) from None
        file.flush()
        os.fsync(file.fileno())
