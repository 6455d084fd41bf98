"""What a layer costs, against numbers by hand, PyTorch's own counter, and the file that is written."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

import gsm_lab as gl
from tests.deploy.test_export import pruned


def test_the_lenets_by_hand() -> None:
    """LeNet-300-100: every weight once. LeNet-5: a weight of conv1 at 24 x 24 places, of conv2 at 8 x 8."""
    model = pruned(gl.models.lenet300(), 60)
    table = gl.deploy.cost(model, torch.rand(5, 1, 28, 28))
    assert list(table.index) == ["fc1.weight", "fc2.weight", "fc3.weight", "rest"]
    assert table.weights.tolist() == [235_200, 30_000, 1_000, 412] and table.nonzeros[:3].sum() == 4436
    assert table.operations_dense.tolist() == [235_200, 30_000, 1_000, 0]
    assert table.operations_sparse.tolist()[:3] == table.nonzeros.tolist()[:3]
    assert table.bytes_dense.tolist() == [940_800, 120_000, 4_000, 1_648]
    lenet5 = pruned(gl.models.lenet5(), 125)
    table = gl.deploy.cost(lenet5, torch.rand(3, 1, 28, 28))
    assert table.operations_dense.tolist() == [500 * 576, 25_000 * 64, 400_000, 5_000, 0]
    places = [576, 64, 1, 1]
    assert table.operations_sparse.tolist()[:4] == [n * at for n, at in zip(table.nonzeros, places, strict=False)]
    assert table.attrs == {"batch": 3, "threads": torch.get_num_threads()}


GROUPS = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
NETS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (gl.models.resnet56(), (2, 3, 32, 32)),
    (nn.Sequential(GROUPS, nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2)), (3, 4, 9, 9)),
    (nn.Sequential(nn.Conv1d(3, 5, 3, dilation=2), nn.ConvTranspose1d(5, 4, 3), nn.Linear(22, 7)), (2, 3, 24)),
    (nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(81, 2)), (2, 2, 4, 4, 4)),
    (nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6, bias=False)).requires_grad_(False), (2, 11, 6)),
]


@pytest.mark.parametrize(("model", "shape"), NETS)
def test_operations_are_those_that_pytorch_counts(model: nn.Module, shape: tuple[int, ...]) -> None:
    sample = torch.rand(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(sample)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    table = gl.deploy.cost(model.train(), sample)
    assert 2 * table.operations_dense.sum() * len(sample) == counter.get_total_flops()
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    model = pruned(gl.models.resnet56(), 10)
    written = gl.deploy.export(model, tmp_path / "m.safetensors")
    header = 8 + int.from_bytes((tmp_path / "m.safetensors").read_bytes()[:8], "little")
    table = gl.deploy.cost(model, torch.rand(1, 3, 32, 32))
    assert table.bytes_sparse.sum() == written - header
    assert table.bytes_dense.sum() == sum(t.numel() * t.element_size() for t in model.state_dict().values())


class Twice(nn.Module):
    """A layer that is called twice, beside one that has its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.a(input=x)))


def test_a_shared_kernel_counts_at_each_call() -> None:
    table = gl.deploy.cost(Twice(), torch.rand(4, 8))
    assert table.operations_dense.tolist() == [3 * 64, 0] and table.weights.tolist() == [64, 16]


def test_an_output_tied_to_an_embedding_counts() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
    model[1].weight = model[0].weight
    table = gl.deploy.cost(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert table.loc["0.weight", "operations_dense"] == 3 * 400 and table.weights.tolist() == [400, 0]


def test_weights_that_are_no_numbers_cost_as_much() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    assert gl.deploy.cost(model, torch.rand(2, 4)).nonzeros.tolist()[0] == 12


def test_latency_is_of_every_layer() -> None:
    table = gl.deploy.cost(gl.models.lenet300(), torch.rand(256, 1, 28, 28), repeats=9)
    taken = table.latency_us
    assert (taken[:3] > 0).all() and taken["fc1.weight"] > taken["fc3.weight"] and "latency_us" in table


class Silent(nn.Module):
    """A layer past whose call its weight is used."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.weight


@pytest.mark.parametrize(
    ("model", "sample", "kind", "said"),
    [
        (Silent(), torch.rand(2, 3), ValueError, "does not call the layer of a.weight"),
        (nn.LSTM(3, 3), torch.rand(2, 3), TypeError, "weight_hh_l0 is a kernel of no Linear layer or convolution"),
        (nn.Linear(3, 3), torch.rand(0, 3), ValueError, "at least one example, [n, ...], got [0, 3]"),
        (nn.Linear(3, 3), torch.tensor(1.0), ValueError, "at least one example, [n, ...], got []"),
        (nn.Linear(3, 3), [1, 2], TypeError, "sample must be a tensor [n, ...], got list"),
        (
            weight_norm(nn.Linear(3, 3)),
            torch.rand(2, 3),
            TypeError,
            "weight is computed from other tensors at each pass: ",
        ),
        ("lenet300", torch.rand(2, 3), TypeError, "model must be an nn.Module, got str"),
    ],
)
def test_what_cannot_be_counted_is_named(model: Any, sample: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        gl.deploy.cost(model, sample)
    with pytest.raises(ValueError, match="repeats is -1"):
        gl.deploy.cost(nn.Linear(3, 3), torch.rand(2, 3), repeats=-1)
