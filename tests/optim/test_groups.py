"""What may be pruned, and the cut, against `torch.topk` and a naive loop."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gsm_lab import models
from gsm_lab.optim import cut, keep_masks, param_groups, prunable

untimed = settings(deadline=None)
pytestmark = pytest.mark.filterwarnings("ignore:the cut left no weight")


class Zoo(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.bag = nn.EmbeddingBag(11, 6)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv1d = nn.Conv1d(2, 3, 3, bias=False)
        self.up = nn.ConvTranspose2d(4, 2, 2)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm([5, 6])
        self.gn = nn.GroupNorm(2, 4)
        self.rms = nn.RMSNorm([3, 2])
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.head = nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 5, bias=False))
        self.attention = nn.MultiheadAttention(6, 2)
        self.rnn = nn.GRU(3, 4)
        self.cell = nn.LSTMCell(3, 4)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.short = nn.LSTM(3, 4, proj_size=2, bidirectional=True)
        self.cross = nn.MultiheadAttention(6, 2, kdim=3, vdim=4, add_bias_kv=True)
        self.scale = nn.Parameter(torch.ones(()))
        self.table = nn.Parameter(torch.ones(2, 3))
        self.cls_token = nn.Parameter(torch.ones(1, 1, 6))
        self.layer_scale = nn.Parameter(torch.ones(4, 1, 1))


ZOO = [
    "conv.weight",
    "conv1d.weight",
    "up.weight",
    "head.0.weight",
    "head.2.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "cell.weight_ih",
    "cell.weight_hh",
    "bilinear.weight",
    *(f"short.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr")),
    *(f"cross.{one}_proj_weight" for one in "qkv"),
    "cross.out_proj.weight",
]


def magnitudes(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().float().abs().reshape(-1) for p in prunable(model).values()])


def linear(*rows: list[float], dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


# ------------------------------------------------------------------------------------------------ what competes


def test_kernels_compete_and_embeddings_norms_and_biases_do_not() -> None:
    model = Zoo()
    found = prunable(model)
    assert list(found) == ZOO  # in the order of named_parameters()
    named = dict(model.named_parameters())
    assert all(found[name] is named[name] for name in found)


@pytest.mark.parametrize(("model", "n"), [(models.lenet300, 266_200), (models.lenet5, 430_500)])
def test_the_papers_counts(model: object, n: int) -> None:
    assert sum(p.numel() for p in prunable(model()).values()) == n


def test_a_subclass_of_a_norm_is_a_norm() -> None:
    class Norm2d(nn.LayerNorm):
        pass

    assert not prunable(nn.Sequential(Norm2d([3, 3])))


def test_a_tied_tensor_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(prunable(model)) == ["0.weight"]
    assert [len(g["params"]) for g in param_groups(model)] == [1, 2]
    assert cut(model, compression=4) == 4
    assert int(model[1].weight.count_nonzero()) == 4


@pytest.mark.parametrize("first", ["embedding", "linear"])
def test_a_linear_layer_tied_to_an_embedding_is_left_alone(first: str) -> None:
    embedding, out, hidden = nn.Embedding(7, 4), nn.Linear(4, 7), nn.Linear(4, 4)
    out.weight = embedding.weight
    model = nn.Sequential(*((embedding, hidden, out) if first == "embedding" else (out, hidden, embedding)))
    assert list(prunable(model)) == ["1.weight"]
    before = embedding.weight.clone()
    cut(model, nonzeros=1)
    assert torch.equal(embedding.weight, before)


def test_frozen_tensors_neither_compete_nor_are_cut() -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    assert list(prunable(model)) == ["2.weight"]
    groups = param_groups(model)
    assert groups[0]["names"] == ["2.weight"]
    assert groups[1]["names"] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.bias",
    ]  # trained once they are unfrozen
    assert cut(model, compression=4) == 4 == int(model[2].weight.count_nonzero())
    for i in (0, 1):
        assert torch.equal(model[i].weight, before[i].weight)
    model[1].weight.requires_grad_(True)
    assert list(prunable(model)) == ["1.weight", "2.weight"]
    model.requires_grad_(False)
    for call in (param_groups, lambda m: cut(m, 2), lambda m: keep_masks(m, 2)):
        with pytest.raises(
            ValueError, match=r"no prunable weights: its kernels are frozen \('0.weight', '1.weight', '2"
        ):
            call(model)
    assert cut(model, compression=2, include=["0.weight", "1.weight"]) == 16  # a word is enough


def test_param_groups_split_a_model_completely() -> None:
    model = Zoo()
    groups = param_groups(model)
    assert [g["prunable"] for g in groups] == [True, False]
    assert "weight_decay" not in groups[0] and groups[1]["weight_decay"] == 0
    assert groups[0]["names"] == ZOO
    named = dict(model.named_parameters())
    for group in groups:
        assert all(named[n] is p for n, p in zip(group["names"], group["params"], strict=True))
    assert {n for g in groups for n in g["names"]} == set(named)


def test_no_empty_group_and_none_without_weights() -> None:
    assert len(param_groups(nn.Linear(3, 3, bias=False))) == 1
    for call in (param_groups, lambda m: cut(m, 2), lambda m: keep_masks(m, 2)):
        with pytest.raises(ValueError, match="Sequential has no prunable weights"):
            call(nn.Sequential(nn.Embedding(3, 3), nn.LayerNorm(3)))


# ------------------------------------------------------------------------------------------------ the cut


@pytest.mark.parametrize("compression", [1, 1.5, 10, 60, 125, 1e9])
@pytest.mark.parametrize("kind", ["lenet300", "lenet5"])
def test_cut_keeps_the_topk_and_nothing_else(compression: float, kind: str) -> None:
    torch.manual_seed(1)
    model = getattr(models, kind)()
    untouched = copy.deepcopy(model)
    w = magnitudes(model)
    q = max(1, int(w.numel() / compression))
    top = w.topk(q)
    expected = torch.zeros_like(w, dtype=torch.bool)
    expected[top.indices] = True
    if (w == top.values[-1]).sum() > 1:  # topk may take any of the tied; the first shall be taken
        tied = (w == top.values[-1]).nonzero()[:, 0]
        expected[tied] = False
        expected[tied[: q - int(expected.sum())]] = True
    masks = keep_masks(model, compression)
    assert {name: (m.dtype, m.shape) for name, m in masks.items()} == {
        name: (torch.bool, p.shape) for name, p in prunable(model).items()
    }
    assert torch.equal(torch.cat([m.reshape(-1) for m in masks.values()]), expected)
    assert all(torch.equal(p, untouched.get_parameter(name)) for name, p in model.named_parameters())  # so far

    assert cut(model, compression) == q
    for name, p in model.named_parameters():
        before = untouched.get_parameter(name)
        assert torch.equal(p, torch.where(masks[name], before, 0.0) if name in masks else before)
    assert cut(model, compression) == q  # a second time changes nothing
    assert torch.equal(torch.cat([m.reshape(-1) for m in keep_masks(model, compression).values()]), expected)


@untimed
@given(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=8), st.data())
def test_ties_go_to_what_comes_first_across_layers(rows: list[list[int]], data: st.DataObject) -> None:
    split = data.draw(st.integers(1, len(rows)))
    model = nn.Sequential(*(linear(*part) for part in (rows[:split], rows[split:]) if part))
    flat = [abs(x) for row in rows for x in row]
    q = data.draw(st.integers(1, len(flat)))
    best = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:q]
    expected = [i in best and flat[i] > 0 for i in range(len(flat))]
    assert torch.cat([m.reshape(-1) for m in keep_masks(model, nonzeros=q).values()]).tolist() == expected
    assert cut(model, nonzeros=q) == sum(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    layer = linear([0.5, -2, 0.25], [1, -1, 4], dtype=dtype)
    assert cut(layer, nonzeros=3) == 3
    assert layer.weight.dtype == dtype
    assert layer.weight.tolist() == [[0, -2, 0], [1, 0, 4]]


def test_storage_order_does_not_matter() -> None:
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2], [2, 1], [2, 2]]).t())
    assert not layer.weight.is_contiguous()
    assert cut(layer, nonzeros=3) == 3
    assert layer.weight.tolist() == [[0, 2, 2], [2, 0, 0]]
    conv = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)
    assert cut(conv, 10) == cut(plain, 10) == 28
    assert torch.equal(conv.weight, plain.weight)


def test_gradients_flow_and_are_kept() -> None:
    layer = nn.Linear(4, 4)
    layer(torch.ones(4)).sum().backward()
    grad = layer.weight.grad.clone()
    cut(layer, 4)
    assert layer.weight.requires_grad and layer.weight.is_leaf and torch.equal(layer.weight.grad, grad)


@pytest.mark.parametrize(
    "budget",
    [{"compression": c} for c in (0.5, 0, -1, math.nan, math.inf, True, "60")]
    + [{"nonzeros": q} for q in (0, -1, 17, 1.5, True, "4")]
    + [{}, {"compression": 4, "nonzeros": 4}],
)
def test_a_bad_budget_changes_nothing(budget: dict[str, object]) -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.clone()
    for call in (cut, keep_masks):
        with pytest.raises(ValueError, match=r"nonzeros|compression"):
            call(layer, **budget)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compression", [1, 60])
def test_non_finite_weights_are_refused_by_name_and_nothing_is_cut(bad: float, compression: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[2, 3] = bad
    before = copy.deepcopy(model)
    for call in (cut, keep_masks):
        with pytest.raises(FloatingPointError, match=r"'1\.weight' holds NaN or infinite"):
            call(model, compression)
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.detach(), before.get_parameter(name).detach())
