"""What is no knob: losses, adapters, networks and metrics are told apart, or refused where runs would share them."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from gsm_lab import Compare, Dataset, Run
from gsm_lab.notebook.told_apart import same
from tests.runs import mine, net, tiny

NO_DENSE = {"pretrain": 0, "hold": 1.0}


@pytest.fixture
def compare() -> Iterator[Callable[..., Compare]]:
    made: list[Compare] = []

    def new(**runs: Run) -> Compare:
        made.append(Compare(runs))
        return made[-1]

    yield new
    for one in made:
        one.close()


def numbers() -> Dataset:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(40, 4, generator=generator), torch.rand(40, generator=generator)
    return Dataset(x[:30], y[:30], x[30:], y[30:], name="numbers")


def network(middle: nn.Module | None = None, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), middle or nn.ReLU(), nn.Linear(8, 1))


def ten_times(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 10 * nn.functional.mse_loss(outputs, targets)


def pair(of_a: dict[str, Any], of_b: dict[str, Any]) -> dict[str, Run]:
    data = numbers()
    return {
        name: Run(of.pop("model", network()), data, **NO_DENSE, compression=2, batch_size=10, **of)
        for name, of in (("a", of_a), ("b", of_b))
    }


@pytest.mark.parametrize(("a", "b", "said"), [
    ({}, {"loss": ten_times}, "What differs: loss: a mse_loss, b ten_times."),
    ({"loss": lambda o, t: (o - t).square().mean()}, {"loss": lambda o, t: (o - t).abs().mean()},
     "What differs: loss: a <lambda> no. 1, b <lambda> no. 2."),
    ({"loss": nn.L1Loss()}, {"loss": nn.L1Loss()}, "The settings are the same."),
    ({"loss": nn.HuberLoss(delta=1.0)}, {"loss": nn.SmoothL1Loss()}, "loss: a HuberLoss, b SmoothL1Loss."),
    ({}, {"output": lambda model, x: 2 * model(x)}, "What differs: output: a as it is, b <lambda>."),
    ({"model": network(nn.ReLU())}, {"model": network(nn.Tanh())}, "differs: model: a (1): ReLU(), b (1): Tanh()."),
    ({"model": network(seed=0)}, {"model": network(seed=1)}, "What differs: initial weights: a no. 1, b no. 2."),
    ({"model": network(seed=1)}, {"model": network(seed=1)}, "The settings are the same."),
])  # fmt: skip
def test_what_is_no_knob_is_told_too(compare: Callable[..., Compare], a: dict, b: dict, said: str) -> None:
    board = compare(**pair(dict(a), dict(b)))
    board.step(3)
    assert said in board.told
    losses_differ = "loss:" in board.told.splitlines()[0]
    assert ("The losses are different functions: their values cannot be compared." in board.told) == losses_differ
    title = next(note.text for note in board.figure.layout.annotations)
    assert ("×" in title or "against" in title) <= (not losses_differ)


def test_functions_made_by_one_line_are_the_same(compare: Callable[..., Compare]) -> None:
    """As in a loop; but not where they hold other values."""

    def scaled(by: float) -> Callable[..., torch.Tensor]:
        return lambda o, t: by * nn.functional.mse_loss(o, t)

    assert "The settings are the same." in compare(**pair({"loss": scaled(2.0)}, {"loss": scaled(2.0)})).told
    assert (
        "loss: a <lambda> no. 1, b <lambda> no. 2" in compare(**pair({"loss": scaled(2.0)}, {"loss": scaled(3.0)})).told
    )
    runs = pair({"loss": scaled(2.0)}, {})
    assert "The settings are the same." in compare(a=runs["a"], b=copy.deepcopy(runs["a"])).told


def test_one_network_in_two_runs_is_refused() -> None:
    net_, data = network(), numbers()
    runs = {name: Run(net_, data, compression=2, batch_size=10, **NO_DENSE) for name in "ab"}
    before = copy.deepcopy(net_.state_dict())
    with pytest.raises(ValueError, match="'a' and 'b' would train the same parameters"):
        Compare(runs)
    assert all(torch.equal(v, before[k]) for k, v in net_.state_dict().items())


def test_two_metrics_of_one_name_are_refused() -> None:
    runs = pair({"metric": lambda o, t: -(o - t).square().mean()}, {"metric": lambda o, t: 1000 - (o - t).abs().mean()})
    with pytest.raises(ValueError, match="two functions called 'metric', as 'a' and 'b'"):
        Compare(runs)


def test_titles_do_not_compare_what_is_of_other_data(compare: Callable[..., Compare]) -> None:
    a, b = tiny(**NO_DENSE), Run(net(1), mine(seed=5), compression=4, batch_size=8, **NO_DENSE)
    board = compare(a=a, b=b)
    board.step(4)
    titles = [note.text.replace("<br>", " ") for note in board.figure.layout.annotations]
    assert titles[0].startswith("<b>Training loss: ") and titles[1].startswith("<b>Accuracy as it is: ")


class Scored:
    def __init__(self, by: float = 1.0) -> None:
        self.by = by

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.by * nn.functional.mse_loss(outputs, targets)


class Acting(nn.Module):
    """Its activation shows nowhere in its print."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers, self.act = network(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.act(self.layers[0](x)))


class Odd(nn.Module):
    """Compares to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = pd.DataFrame({"a": [1, 2]})

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)


def with_a_cell(filled: bool) -> Callable[..., torch.Tensor]:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets) if outputs is not None else scale

    if filled:
        scale = 1.0
    return loss


ALIKE = [
    (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=1.0), True),
    (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=9.0), False),  # both print as HuberLoss()
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.9), False),
    (nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.ones(3)), True),
    (nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.zeros(3)), False),
    (partial(ten_times, targets=1), partial(ten_times, targets=1), True),
    (partial(ten_times, targets=1), partial(ten_times, targets=2), False),
    (Scored(2.0), Scored(2.0), True),
    (Scored(2.0), Scored(3.0), False),
    (Scored(2.0).__call__, Scored(2.0).__call__, True),
    (Scored(2.0).__call__, Scored(3.0).__call__, False),
    (with_a_cell(True), with_a_cell(True), True),
    (with_a_cell(False), with_a_cell(False), True),
    (with_a_cell(True), with_a_cell(False), False),
    (Odd(), Odd(), False),  # it cannot be told
    (Scored, Scored, True),
    (None, ten_times, False),
]


@pytest.mark.parametrize(("f", "g", "alike"), ALIKE)
def test_what_is_made_alike_is_the_same(f: Any, g: Any, alike: bool) -> None:
    assert same(f, g) is alike and same(g, f) is alike and same(f, f)
    if not isinstance(f, Odd):
        assert same(f, copy.deepcopy(f))


def test_a_copy_with_a_metric_that_is_an_object_can_be_compared(compare: Callable[..., Compare]) -> None:
    run = pair({"metric": Scored(-1.0), "loss": partial(nn.functional.mse_loss, reduction="mean")}, {})["a"]
    assert "The settings are the same." in compare(a=run, b=copy.deepcopy(run)).told


@pytest.mark.parametrize(("models", "said"), [
    ([Acting(torch.relu), Acting(torch.tanh)], "model: a Acting no. 1, b Acting no. 2."),
    ([Acting(torch.relu), Acting(torch.relu)], "The settings are the same."),
    ([nn.Sequential(nn.Linear(4, 9), *(nn.ReLU(), nn.Linear(9, 1, bias=b))) for b in (True, False)],
     "(2): Linear(in_features=9, out_features=1, bias=True), b (2): Linear("),
    ([nn.Sequential(nn.Linear(4, 8), one(), nn.Linear(8, 8), other(), nn.Linear(8, 1))
      for one, other in ((nn.ReLU, nn.ReLU), (nn.Tanh, nn.ReLU), (nn.ReLU, nn.Tanh))],
     "model: a (1): ReLU() no. 1, b (1): Tanh() no. 2, c (1): ReLU() no. 3."),
])  # fmt: skip
def test_networks_are_told_apart_whatever_differs(models: list[nn.Module], said: str) -> None:
    names, data = "abc"[: len(models)], numbers()
    if "same" in said:
        models[1].load_state_dict(models[0].state_dict())
    runs = {n: Run(m, data, compression=2, batch_size=10, **NO_DENSE) for n, m in zip(names, models, strict=True)}
    board = Compare(runs)
    try:
        assert said in board.told
    finally:
        board.close()


def test_a_long_line_is_shown_from_where_it_differs() -> None:
    images = Dataset(torch.rand(30, 1, 8, 8), torch.rand(30), torch.rand(10, 1, 8, 8), torch.rand(10), name="images")
    runs = {}
    for name, bias in (("a", True), ("b", False)):
        layers = nn.Conv2d(1, 4, (3, 3), (1, 1), (1, 1), bias=bias), nn.Flatten(), nn.Linear(256, 1)
        runs[name] = Run(nn.Sequential(*layers), images, compression=2, batch_size=10, **NO_DENSE)
    board = Compare(runs)
    try:
        assert "What differs: model: a …" in board.told and "padding=(1, 1), bias=False)" in board.told
    finally:
        board.close()


def test_a_frozen_backbone_may_be_shared_and_running_statistics_may_not(compare: Callable[..., Compare]) -> None:
    frozen = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False)
    knobs = {"compression": 2, "batch_size": 10, **NO_DENSE}
    runs = {name: Run(nn.Sequential(frozen, nn.Linear(8, 1)), numbers(), **knobs) for name in "ab"}
    with pytest.raises(ValueError, match="would train the same parameters or buffers"):
        Compare(runs)
    frozen.eval()
    runs = {name: Run(nn.Sequential(frozen, nn.Linear(8, 1)), numbers(), **knobs) for name in "ab"}
    before = copy.deepcopy(frozen.state_dict())
    compare(**runs).step(3)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
