"""Tensors in a safetensors file that carries a SHA-256 of all that is in it, so that a flipped bit is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class Damaged(ValueError):
    """A file whose content is not what was written; the message says how that shows, without the file's name."""


def digest(tensors: dict[str, Tensor], header: str) -> str:
    """SHA-256 of names, types, shapes and values (row by row, on the CPU), and of the text that goes with them."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return sha.hexdigest()


def content_of(tensors: dict[str, Tensor], about: dict[str, str]) -> bytes:
    """The content of a file of these tensors, with `about` and their checksum in its header, for `checked`."""
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}  # tied ones share memory
    return packed(tensors, about | {"sha256": digest(tensors, json.dumps(about, sort_keys=True))})


def packed(tensors: dict[str, Tensor], about: dict[str, str]) -> bytes:
    """The content of a safetensors file: the same bytes for the same content, where safetensors shuffles `about`."""
    content = save(tensors, about)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the format has it, for the tensors to be aligned
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[start:]])


def checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the `about` of a file that `content_of` made. Raises Damaged, and OSError where there is none."""
    tensors, about = read(path)
    if about.pop("sha256", None) != digest(tensors, json.dumps(about, sort_keys=True)):
        raise Damaged("its content does not match its checksum")
    return tensors, about


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text in the header of a safetensors file, unchecked. Raises Damaged, OSError.

    Copies of its own: nothing goes on reading from a file that may be replaced, or emptied, under it.
    """
    content = path.read_bytes()
    try:
        return dict(sorted(load(content).items())), _header(content)  # it has them in no order
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise Damaged(str(error)) from None


def fingerprint(path: Path) -> str:
    """The checksum in the header of a file that is known to be whole."""
    with path.open("rb") as file:
        start = file.read(8)
        return _header(start + file.read(int.from_bytes(start, "little"))).get("sha256", "")


def _header(content: bytes) -> dict[str, str]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
