"""The check of a study against plain autograd and brute force: what is wrong is noticed."""

import pytest
import torch
from torch import Tensor, nn

from gsm_lab.studies import taylor
from gsm_lab.studies.problem import Problem
from gsm_lab.training.derivatives import differentiable_twice
from tests.studies.test_any_model import mlp, problem


def test_a_study_that_is_wrong_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(mlp)
    right = Problem.changes_without
    monkeypatch.setattr(Problem, "changes_without", lambda self, indices: 1.001 * right(self, indices))
    with pytest.raises(ArithmeticError, match=r"loss changes and gradients of model Sequential .* not those of plain"):
        taylor.singles(p, 3, compression=5)
    monkeypatch.undo()
    bent = Problem.hessian_diagonal
    monkeypatch.setattr(Problem, "hessian_diagonal", lambda self, indices: 1.1 * bent(self, indices) + 0.1)
    with pytest.raises(ArithmeticError, match="second derivatives of model Sequential"):
        taylor.sets(p, 5, shares=(0.1,))
    monkeypatch.undo()
    slope = Problem.gradient
    monkeypatch.setattr(Problem, "gradient", lambda self: slope(self) * 1.01)
    with pytest.raises(ArithmeticError, match="loss changes and gradients"):
        taylor.exhaustive(p, progress=False)


def test_weight_normalisation_has_the_second_derivatives_of_its_formula() -> None:
    """PyTorch's fused one has others (2.13), which the check of the study found."""
    torch.manual_seed(0)
    plain = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    net = nn.Sequential(plain, nn.Tanh(), nn.Linear(5, 3))
    g, v = (w.detach().double() for w in plain.parametrizations.weight.parameters())
    x = torch.randn(8, 6, dtype=torch.float64)

    def by_formula(v: Tensor) -> Tensor:
        return torch.tanh(x @ (v * g / v.norm(dim=1, keepdim=True)).T).square().sum()

    def by_layer(v: Tensor) -> Tensor:
        with differentiable_twice(net):
            return torch.tanh(x @ torch._weight_norm(v, g, 0).T).square().sum()

    torch.testing.assert_close(torch.autograd.functional.hessian(by_layer, v),
                               torch.autograd.functional.hessian(by_formula, v))  # fmt: skip
