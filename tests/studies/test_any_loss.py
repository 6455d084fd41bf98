"""The Taylor study on losses of many kinds: the oracles are those of `test_any_model`."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.studies import taylor
from gsm_lab.studies.curvature import diagonal
from gsm_lab.studies.exhaustive import _chain
from gsm_lab.studies.problem import Problem
from tests.studies.test_any_model import brute_force, derivatives, mlp, problem


class Penalty(nn.Module):
    """A loss that has the network itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y) + 0.01 * sum(p.square().sum() for p in self.net.parameters())


_SOME = torch.Generator().manual_seed(2)
SOFT = torch.softmax(torch.randn(10, 3, generator=_SOME), 1)
REAL = torch.randn(10, 3, generator=_SOME)
WEIGHTS = torch.tensor([1.0, 5.0, 0.2])
HARD = torch.arange(10) % 3
PARTLY = HARD.where(torch.arange(10) % 4 > 0, -100)  # three of ten are ignored
LOSSES = {  # loss, labels, whether it goes by units, whether there are gradients of single samples
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), HARD, True, True),
    "class weights, sum": (nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"), HARD, True, True),
    "class weights held in float32": (functools.partial(F.cross_entropy, weight=WEIGHTS), HARD, True, True),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), HARD, True, True),
    "ignored labels": (F.cross_entropy, PARTLY, True, True),
    "ignored labels, sum": (nn.CrossEntropyLoss(reduction="sum"), PARTLY, True, True),
    "another label ignored": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1), HARD, True, True),
    "smoothed labels": (nn.CrossEntropyLoss(label_smoothing=0.1), HARD, True, True),
    "smoothed labels and class weights": (nn.CrossEntropyLoss(label_smoothing=0.1, weight=WEIGHTS), HARD, None, None),
    "soft labels in float32": (F.cross_entropy, SOFT, True, True),
    "KL": (lambda a, b: F.kl_div(F.log_softmax(a, 1), b, reduction="batchmean"), SOFT, True, True),
    "KL over entries": (lambda a, b: F.kl_div(F.log_softmax(a, 1), b), SOFT, True, True),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (SOFT > 0.3).float(), True, True),
    "squares": (nn.MSELoss(reduction="sum"), REAL, True, True),
    "root of mean squares": (lambda a, b: F.mse_loss(a, b).sqrt(), REAL, False, False),
    "the worst five": (lambda a, b: F.cross_entropy(a, b, reduction="none").topk(5).values.mean(), HARD, False, False),
    "over the batch": (lambda a, b: F.cross_entropy(F.normalize(a, dim=0), b), HARD, False, False),
    "a branch": (lambda a, b: F.cross_entropy(a, b) if float(a.sum()) > -1e9 else a.sum(), HARD, False, True),
    "a mask": (lambda a, b: F.cross_entropy(a[b >= 0], b[b >= 0]), PARTLY, False, True),
    "a penalty of its own": (Penalty, HARD, False, True),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the column Fisher is empty", "ignore:reduction")
@pytest.mark.parametrize("name", LOSSES)
def test_the_truth_is_of_this_loss(name: str) -> None:
    loss, y, by_units, apart = LOSSES[name]
    torch.manual_seed(0)
    net = mlp(nn.ReLU())
    p = problem(lambda: net, Penalty(net) if loss is Penalty else loss, y)
    truth, size = brute_force(p) if loss is not Penalty else changes_in_place(p), max(1, abs(p.value))
    table = taylor.exhaustive(p, progress=False)
    np.testing.assert_allclose(table["true"], truth, rtol=1e-9, atol=1e-13 * size)
    with torch.no_grad(), p.computing():
        assert by_units is None or [_chain(p, layer) is not None for layer in p.weights] == [by_units] * 2
    if loss is not Penalty:
        gradient, bent = derivatives(p)
        torch.testing.assert_close(p.gradient(), gradient, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(diagonal(p, all_layers=True), bent, rtol=1e-8, atol=1e-12)
    if apart:
        torch.testing.assert_close(torch.cat(list(p.sample_gradients())).mean(0), p.gradient(), rtol=1e-9, atol=1e-13)
    elif apart is False:
        with pytest.raises(ValueError, match=r"loss .* on model Sequential has no gradients of single samples"):
            list(p.sample_gradients())
    check = taylor.singles(p, 2, compression=5).attrs["check"]
    assert check["difference"] <= check["tolerance"] < 1e-5 * size


def changes_in_place(p: Problem) -> np.ndarray:
    changes = []
    for name, w in p.weights.items():
        for k in range(w.numel()):
            other = w.detach().clone()
            other.view(-1)[k] = 0
            changes.append(p.loss_at({name: other}) - p.value)
    return np.array(changes)


def test_the_fisher_information_of_a_weighted_loss() -> None:
    """The mean over samples, weighted as the loss weighs them, of the squared gradient of a sample's own loss."""
    p = problem(mlp, nn.CrossEntropyLoss(weight=WEIGHTS), HARD)
    share = WEIGHTS.double()[HARD] / WEIGHTS.double()[HARD].sum()
    rows = torch.stack([Problem(p.model, x[None], y[None]).gradient() for x, y in zip(p.x, p.y, strict=True)])
    torch.testing.assert_close(p.squared_gradients, (share[:, None] * rows.square()).sum(0), rtol=1e-9, atol=1e-15)
