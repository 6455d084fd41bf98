"""The sparse file: bit for bit what was written, as small as it should be, and nothing of a file that is not whole."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gsm_lab as gl
from gsm_lab.deploy.sparse import joined, size, split
from gsm_lab.training.tensor_files import content_of


def pruned(model: nn.Module, compression: float, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for p in model.parameters():
        nn.init.normal_(p)
    gl.cut(model, compression=compression)
    return model


def bits(t: torch.Tensor) -> bytes:
    return t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(bits(mine[n] + 0) == bits(other[n] + 0) for n in mine)


def by_hand(file: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A kernel from the file, read by safetensors' numpy door, entry by entry."""
    held = safetensors.numpy.load_file(file)
    dense, at = np.zeros((shape[0], math.prod(shape[1:])), np.float32), 0
    for row, count in enumerate(held[f"{name}.counts"]):
        for _ in range(count):
            dense[row, held[f"{name}.columns"][at]] = held[f"{name}.values"][at]
            at += 1
    assert at == len(held[f"{name}.values"])
    return dense.reshape(shape)


@pytest.mark.parametrize(("make", "compression", "most"), [("lenet300", 60, 30_000), ("lenet5", 125, 25_500)])
def test_a_lenet_is_as_small_as_what_is_left_of_it(make: str, compression: float, most: int, tmp_path: Path) -> None:
    """Targets: 30 kB of 1,066, and 25.5 kB of 1,724, biases and header among them."""
    model, file = pruned(getattr(gl.models, make)(), compression), tmp_path / "model.safetensors"
    written = gl.deploy.export(model, file)
    assert written == file.stat().st_size <= most
    other = getattr(gl.models, make)()
    tensors = gl.deploy.load(file, other)
    assert same(model, other) and tensors.keys() == model.state_dict().keys()
    name = "fc1.weight"
    assert (by_hand(file, name, tuple(model.fc1.weight.shape)) == model.fc1.weight.detach().numpy()).all()


KINDS = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=4),
    st.floats(0, 1),
    KINDS,
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_any_kernel_comes_back(shape: list[int], density: float, kind: torch.dtype, seed: int, wide: bool) -> None:
    shape = [shape[0], 300 * shape[1]] if wide else shape
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    kernel = (kernel + 0).to(kind)
    if (parts := split(kernel)) is None:
        assert density > 0.1 or kernel.numel() < 200  # of few entries the counts alone are as many bytes
        return
    assert size(parts.values()) < size([kernel])
    back = joined(parts, shape)
    assert back.dtype == kind and bits(back) == bits(kernel)


def test_other_layers_and_dtypes(tmp_path: Path) -> None:
    """Tied, transposed, recurrent, buffers, an empty layer; float16 of what float16 holds; a layout of its own."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(40, 40), nn.Linear(40, 40)
            self.b.weight = self.a.weight
            self.up = nn.ConvTranspose2d(4, 6, 3)
            self.rnn, self.norm, self.none = nn.LSTM(30, 30), nn.BatchNorm1d(3), nn.Linear(50, 50, bias=False)
            self.double = nn.Linear(70, 70).double()

    model, other = pruned(Odd(), 20), Odd()
    with torch.no_grad():
        model.none.weight.zero_()
        model.up.weight = nn.Parameter(model.up.weight.detach().to(memory_format=torch.channels_last))
    gl.deploy.export(model, tmp_path / "odd.safetensors")
    gl.deploy.load(tmp_path / "odd.safetensors", other)
    assert same(model, other) and other.b.weight is other.a.weight
    halves, single = pruned(gl.models.lenet300(), 60).half().float(), tmp_path / "half.safetensors"
    assert gl.deploy.export(halves, single, dtype="float16") < 0.75 * gl.deploy.export(
        halves, tmp_path / "x.safetensors"
    )
    whole = gl.models.lenet300()
    gl.deploy.load(single, whole)
    assert same(halves, whole)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    model, file = pruned(gl.models.lenet300(), 60), tmp_path / "model.safetensors"
    gl.deploy.export(model, file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"file must end in \.safetensors, got 'model\.h'"):
        gl.deploy.export(model, tmp_path / "model.h")
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        gl.deploy.export(model, file, dtype="int8")
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got OrderedDict"):
        gl.deploy.export(model.state_dict(), file)
    with torch.no_grad():
        model.fc2.bias[3] = 1e6
    with pytest.raises(ValueError, match=r"fc2\.bias holds NaN or infinity as float16: nothing was written"):
        gl.deploy.export(model, file, dtype="float16")
    with torch.no_grad():
        model.fc2.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"fc2\.bias holds NaN or infinity: nothing was written"):
        gl.deploy.export(model, file)
    with pytest.raises(OSError, match="cannot be written"):
        gl.deploy.export(gl.models.lenet300(), tmp_path / "none" / "model.safetensors")
    assert file.read_bytes() == before and os.listdir(tmp_path) == [file.name]


def test_another_model_is_told_apart_before_anything_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    gl.deploy.export(pruned(gl.models.lenet300(), 60), file)
    for other, said in (
        (gl.models.lenet5(), "it has no conv1.bias"),
        (gl.models.lenet300(classes=7), r"fc3\.bias is \[10\] there, \[7\] here"),
        (gl.models.lenet300().half(), "which torch.float16 of the model cannot hold"),
    ):
        before = {name: bits(t) for name, t in other.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            gl.deploy.load(file, other)
        assert {name: bits(t) for name, t in other.state_dict().items()} == before


def test_a_model_that_ties_what_the_file_does_not(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    apart, tied = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    gl.deploy.export(apart, file)
    before = tied[0].weight.clone()
    with pytest.raises(ValueError, match=r"1\.weight is 0\.weight here, and another tensor there"):
        gl.deploy.load(file, tied)
    assert torch.equal(tied[1].weight, before)
    gl.deploy.export(tied, file)
    gl.deploy.load(file, apart)  # the other way round there is nothing to lose
    assert same(tied, apart)


PARTS = {
    "w.values": torch.tensor([1.0, 2.0]),
    "w.columns": torch.tensor([0, 3], dtype=torch.uint8),
    "w.counts": torch.tensor([1, 1], dtype=torch.uint8),
}


def made(file: Path, shape: list[object], form: object = 1, **parts: torch.Tensor) -> Path:
    about = json.dumps({"form": form, "sparse": {"w": shape}, "tied": {}})
    file.write_bytes(content_of({**PARTS, **{f"w.{name}": t for name, t in parts.items()}}, {"gsm_lab": about}))
    return file


def test_files_that_are_not_whole_or_lie(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    assert gl.deploy.load(made(file, [2, 4]))["w"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 2]]
    u8 = torch.uint8
    for shape, form, parts, said in (
        ([2, 3], 1, {}, "a column is 3 in rows of 3"),
        ([3, 4], 1, {}, "2 values, 2 columns, and 2 by its counts"),
        ([2, 10**12], 1, {}, "holds more than 2,147,483,647 weights"),
        ([2, -4], 1, {}, "its shape is"),
        ([2], 1, {}, "its shape is"),
        (["2", 4], 1, {}, "its shape is"),
        ([2, 4], 2, {}, "its form is 2, this gsm_lab reads 1"),
        ([2, 4], 1, {"counts": torch.tensor([2, 2], dtype=u8)}, "2 values, 2 columns, and 4 by its counts"),
        ([2, 4], 1, {"counts": torch.tensor([2, 0], dtype=u8), "columns": torch.tensor([3, 3], dtype=u8)}, "ascend"),
        ([2, 4], 1, {"counts": torch.tensor([1, 1])}, "no unsigned integers"),
        ([2, 4], 1, {"values": torch.tensor([1, 2])}, "values no floats"),
    ):
        with pytest.raises(ValueError, match=r"m\.safetensors is no whole file of `export`: .*" + said):
            gl.deploy.load(made(file, shape, form, **parts))
    made(file, [2, 4])
    whole = file.read_bytes()
    for content in (whole[:-1], b"", whole.replace(b'"w.counts"', b'"w.count_"'), whole[:-8] + bytes([3]) + whole[-7:]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is no whole file of `export`"):
            gl.deploy.load(file)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, file)
    with pytest.raises(ValueError, match="is no whole file of `export`"):
        gl.deploy.load(file)
    with pytest.raises(FileNotFoundError):
        gl.deploy.load(tmp_path / "none.safetensors")
