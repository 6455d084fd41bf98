"""What fits together, and what is said when it does not, before any training; accuracies against plain loops."""

import contextlib
import copy
import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab import Dataset, Run, methods
from gsm_lab.training.fitting import must_be_a_mean
from gsm_lab.training.outputs import predicted

SMALL = {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 2.0, "evaluate_every": 3}


def corners(classes: int = 3, n: int = 60) -> Dataset:
    drawn = torch.Generator().manual_seed(classes)
    y = torch.arange(n) % classes
    x = 2 * torch.randn(classes, 6, generator=drawn)[y] + torch.randn(n, 6, generator=drawn)
    return Dataset(x[: n - 20], y[: n - 20], x[n - 20 :], y[n - 20 :], name="corners")


def mlp(outputs: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, outputs))


class Shaped(nn.Module):
    """A network whose outputs something has been done to."""

    def __init__(self, net: nn.Module, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(self.net(x))


def on_logit(out: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out.reshape(-1), labels.float())


def on_probability(out: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy(out.reshape(-1), labels.float())


def squares_of_signs(out: Tensor, labels: Tensor) -> Tensor:
    return (out.reshape(-1) - (2.0 * labels - 1)).square().mean()


def weighted(out: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out.reshape(-1), labels.float(), pos_weight=torch.tensor(4.0))


# ------------------------------------------------------------------------------------------------ what is supported


@pytest.mark.parametrize(
    ("shape", "loss", "border"),
    [
        (lambda z: z, on_logit, 0.0),
        (lambda z: z[:, 0], on_logit, 0.0),
        (lambda z: z[:, :, None], on_logit, 0.0),
        (lambda z: z, weighted, 0.0),
        (lambda z: z, squares_of_signs, 0.0),
        (lambda z: z.sigmoid(), on_probability, 0.5),
        (lambda z: z.sigmoid()[:, 0], lambda p, y: (p - y.float()).square().mean(), 0.5),
    ],
    ids=["logit", "flat", "trailing", "weighted", "signs", "probability", "squares"],
)
def test_one_output_for_two_classes_means_what_the_loss_takes_it_for(
    shape: Callable[[Tensor], Tensor], loss: Callable[[Tensor, Tensor], Tensor], border: float
) -> None:
    data, model = corners(2), Shaped(mlp(1), shape)
    run = Run(model, data, loss=loss, **SMALL | {"pretrain": 4})
    run.train(progress=False)
    model.eval()
    wanted = ((model(data.test_x).reshape(-1) > border).long() == data.test_y).double().mean().item()
    assert run.evaluate() == wanted > 0.6
    assert 0 <= run.evaluate(cut=True) <= 1


@pytest.mark.parametrize("tail", [(1,), (1, 1)])
def test_logits_may_have_places_of_one(tail: tuple[int, ...]) -> None:
    data = corners()
    model = Shaped(mlp(), lambda z: z.reshape(*z.shape, *tail))
    run = Run(model, data, loss=lambda z, y: F.cross_entropy(z.flatten(1), y), **SMALL)
    run.train(progress=False)
    wanted = (model(data.test_x).flatten(1).argmax(1) == data.test_y).double().mean().item()
    assert run.evaluate() == pytest.approx(wanted)


Answer = namedtuple("Answer", ["logits", "features"])


@pytest.mark.parametrize("kind", ["dict", "namespace", "namedtuple"])
def test_an_answer_with_logits_is_read_by_them(kind: str) -> None:
    wrap = {
        "dict": lambda z: {"logits": z, "more": z.mean()},
        "namespace": lambda z: SimpleNamespace(logits=z),
        "namedtuple": lambda z: Answer(z, z.relu()),
    }[kind]
    read = (lambda a: a["logits"]) if kind == "dict" else (lambda a: a.logits)
    run = Run(Shaped(mlp(), wrap), corners(), loss=lambda a, y: F.cross_entropy(read(a), y), **SMALL)
    plain = Run(mlp(), corners(), **SMALL)
    for one in (run, plain):
        one.step(7)
    assert run.evaluate(cut=True) == plain.evaluate(cut=True)
    assert all(map(torch.equal, run.model.parameters(), plain.model.parameters()))


class TwoInputs(nn.Module):
    """Takes two keyword arguments and gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, *, left: Tensor, right: Tensor) -> tuple[Tensor, None]:
        return self.a(left) + self.b(right), None


def adapted(model: nn.Module, x: Tensor) -> Tensor:
    return model(left=x[:, :4], right=x[:, 4:])[0]


def test_an_adapter_serves_another_signature_through_training_rivals_saving_and_resuming(tmp_path: Path) -> None:
    data = corners()
    run = Run(TwoInputs(), data, output=adapted, **SMALL)
    run.step(4)
    run.save(tmp_path)
    run.step(3)
    with pytest.raises(ValueError, match=r"output.*adapted.*resume\(\.\.\., output=\.\.\.\)"):
        Run.resume(tmp_path, model=TwoInputs(), data=data)
    again = Run.resume(tmp_path, model=TwoInputs(), data=data, output=adapted)
    again.step(3)
    assert all(map(torch.equal, run.model.parameters(), again.model.parameters()))
    wanted = (adapted(run.model, data.test_x).argmax(1) == data.test_y).double().mean().item()
    assert again.evaluate() == run.evaluate() == pytest.approx(wanted)
    for method in ("dns", "lobs"):
        few = SMALL | {"epochs": 1}
        pruned = methods.prune(method, progress=False, model=TwoInputs(), data=data, output=adapted, **few)
        assert sum(int(p.count_nonzero()) for p in methods.weights(pruned)) <= pruned.nonzeros


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_data_comes_in_the_type_of_the_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    data, model = corners(), mlp().to(dtype)
    run = Run(model, data, **SMALL)
    assert run.data.train_x.dtype == dtype and run.data.digest == data.digest
    run.train(progress=False)
    with torch.no_grad():
        wanted = (model(data.test_x.to(dtype)).argmax(1) == data.test_y).double().mean().item()
    assert run.evaluate() == pytest.approx(wanted)
    run.save(tmp_path)
    again = Run.resume(tmp_path, model=mlp().to(dtype), data=data)
    run.step(2)
    again.step(2)
    assert all(map(torch.equal, model.parameters(), again.model.parameters()))


def test_lazy_layers_take_their_shapes_first_and_train_like_others() -> None:
    torch.manual_seed(7)
    lazy = nn.Sequential(nn.LazyLinear(10), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    run = Run(lazy, corners(), **SMALL)
    assert run.history.layers == {"0.weight": 60, "3.weight": 30}
    assert int(lazy[1].num_batches_tracked) == 0
    twin = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))
    twin.load_state_dict(copy.deepcopy(lazy.state_dict()))
    other = Run(twin, corners(), **SMALL)
    for one in (run, other):
        one.step(9)
    assert all(map(torch.equal, lazy.state_dict().values(), twin.state_dict().values()))
    run.reset()
    other.reset()
    assert all(map(torch.equal, lazy.state_dict().values(), twin.state_dict().values()))


def test_lazy_layers_take_their_shapes_from_data_by_name_too() -> None:
    run = Run(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "digits", pretrain=0)
    run.step(1)
    assert run.model[1].weight.shape == (10, 784)


def test_two_lazy_models_do_not_begin_alike() -> None:
    models = [nn.Sequential(nn.LazyLinear(10), nn.ReLU(), nn.LazyLinear(3)) for _ in range(2)]
    for model in models:
        Run(model, corners(), **SMALL)
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


def test_more_outputs_than_classes_are_allowed() -> None:
    run = Run(mlp(5), corners(), **SMALL)
    run.step(3)
    assert 0 <= run.evaluate() <= 1


def test_it_trains_where_the_program_has_gradients_off() -> None:
    with torch.no_grad():
        run = Run(mlp(), corners(), **SMALL)
        run.step(2)
    other = Run(mlp(), corners(), **SMALL)
    other.step(2)
    assert all(map(torch.equal, run.model.parameters(), other.model.parameters()))


# ------------------------------------------------------------------------------------------------ what it leaves behind


class Moody(nn.Module):
    """Draws numbers, keeps statistics and initialises itself from the first batch it sees."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Dropout(0.5), nn.Linear(10, 3))
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("seen", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.begun:
            self.scale.data.copy_(1 / (x.std(0) + 0.1))
            self.begun.fill_(True)
        self.seen = self.seen + 1
        return self.net(x * self.scale)


def test_asking_leaves_the_model_and_the_programs_numbers_as_they_were() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(4)
    model = Moody()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    Run(model, corners(), **SMALL)
    assert torch.equal(torch.rand(4), wanted)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert int(model.seen) == 0 and all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_modules_at_rest_stay_so_and_a_model_at_rest_is_woken() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))

    frozen = net()
    frozen[1].eval()
    run = Run(frozen, corners(), **SMALL)
    run.step(3)
    run.evaluate()
    frozen.eval()  # as for a look at it
    run.step(3)
    assert int(frozen[1].num_batches_tracked) == 0 and frozen[0].training
    whole = net().eval()
    Run(whole, corners(), **SMALL).step(3)
    assert int(whole[1].num_batches_tracked) == 8  # five dense steps, and these
    later = Run(net(), corners(), **SMALL)
    later.step(1)
    later.model[1].eval()
    seen = int(later.model[1].num_batches_tracked)
    later.step(4)
    assert int(later.model[1].num_batches_tracked) == seen


# ------------------------------------------------------------------------------------------------ what is refused


class Complaining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("what?")


class Auxiliary(nn.Module):
    """As GoogLeNet: another answer in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return (self.a(x), self.a(x)) if self.training else self.a(x)


class Extra(nn.Module):
    def __init__(self, state: object) -> None:
        super().__init__()
        self.a, self.state = nn.Linear(6, 3), state

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def at_random(z: Tensor, y: Tensor) -> Tensor:
    return z.sum() * 0 + float(len(y)) if len(y) > 99 else F.cross_entropy(z, y, reduction="none")


# fmt: off
REFUSED: dict[str, tuple[Callable[[], Run], type[Exception], str]] = {
    "too few outputs": (
        lambda: Run(mlp(2), corners()),
        ValueError,
        r"loss does not take|model must give logits \[n, 3\]",
    ),
    "one output": (lambda: Run(mlp(1), corners(2)), ValueError, r"loss does not take what the model gives, \[3, 1\]"),
    "one output, three classes": (
        lambda: Run(mlp(1), corners(3), loss=lambda z, y: (z[:, 0] - y).square().mean()),
        ValueError,
        r"model must give logits \[n, 3\] for the 3 classes of 'corners', got \[2, 1\] of torch.float32 for n = 2",
    ),
    "a logit of class 0": (
        lambda: Run(mlp(1), corners(2), loss=lambda z, y: on_logit(-z, y)),
        ValueError,
        "one output",
    ),
    "classes first": (
        lambda: Run(Shaped(mlp(), lambda z: z.T), corners(), loss=lambda z, y: F.cross_entropy(z.T, y)),
        ValueError,
        r"got \[3, 2\] of torch.float32 for n = 2",
    ),
    "a tuple": (
        lambda: Run(Shaped(mlp(), lambda z: (z, z)), corners(), loss=lambda a, y: F.cross_entropy(a[0], y)),
        ValueError,
        r"a tuple of \[2, 3\].*output=lambda model, x",
    ),
    "a tuple and cross entropy": (lambda: Run(Shaped(mlp(), lambda z: (z, z)), corners()), ValueError, "output=lambda"),
    "another answer in training": (
        lambda: Run(Auxiliary(), corners()),
        ValueError,
        "loss does not take what .* a tuple",
    ),
    "labels as answer": (
        lambda: Run(Shaped(mlp(), lambda z: z.argmax(1)), corners(), loss=lambda z, y: z.float().mean()),
        ValueError,
        "loss must have a gradient",
    ),
    "a model that fails": (
        lambda: Run(Complaining(), corners()),
        ValueError,
        r"for inputs \[2, 6\].*KeyError: 'what\?'",
    ),
    "inputs of another size": (lambda: Run(nn.Linear(7, 3), corners()), ValueError, "model does not take the data"),
    "batch norm, one row": (
        lambda: Run(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), corners(), batch_size=1),
        ValueError,
        r"in training mode, for inputs \[1, 6\]",
    ),
    "frozen": (lambda: Run(mlp().requires_grad_(False), corners()), ValueError, "requires_grad is False for all"),
    "no parameters": (lambda: Run(nn.Flatten(), corners()), ValueError, "model must have parameters, Flatten has none"),
    "meta": (lambda: Run(mlp().to("meta"), corners()), ValueError, "meta device"),
    "extra state": (lambda: Run(Extra(object()), corners()), ValueError, "'_extra_state'"),
    "loss by name": (lambda: Run(mlp(), corners(), loss="cross_entropy"), TypeError, "loss must be.*'cross_entropy'"),
    "no loss": (lambda: Run(mlp(), corners(), loss=3), TypeError, "loss must be a function"),
    "loss class": (lambda: Run(mlp(), corners(), loss=nn.CrossEntropyLoss), TypeError, "the class CrossEntropyLoss"),
    "reduction none": (
        lambda: Run(mlp(), corners(), loss=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        r"loss must return one real number.*got \[2\]",
    ),
    "a vector": (lambda: Run(mlp(), corners(), loss=at_random), ValueError, r"got \[2\]"),
    "a float": (lambda: Run(mlp(), corners(), loss=lambda z, y: 1.0), TypeError, "loss must return a tensor.*got 1.0"),
    "None": (lambda: Run(mlp(), corners(), loss=lambda z, y: None), TypeError, "loss must return a tensor.*got None"),
    "detached": (
        lambda: Run(mlp(), corners(), loss=lambda z, y: F.cross_entropy(z.detach(), y)),
        ValueError,
        "loss must have a gradient",
    ),
    "complex": (lambda: Run(mlp(), corners(), loss=lambda z, y: z.sum() * 1j), ValueError, "one real number"),
    "output": (lambda: Run(mlp(), corners(), output="logits"), TypeError, "output must be None or a function"),
    "an output that fails": (
        lambda: Run(mlp(), corners(), output=lambda model, x: model(x).logits),
        ValueError,
        r"output\(model, x\) fails.*logits",
    ),
    "loss of a named model": (
        lambda: Run(loss=F.nll_loss, output=lambda model, x: 3),
        ValueError,
        "loss does not take",
    ),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_said_when_the_run_is_made(case: str) -> None:
    make, kind, said = REFUSED[case]
    with pytest.raises(kind, match=said):
        make()


def test_a_reset_that_does_not_fit_changes_nothing() -> None:
    run = Run(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), corners(), **SMALL)
    run.step(4)
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(ValueError, match="model does not take the data"):
        run.reset(data="digits")
    assert run.steps == 4 and run.data.name == "corners"
    assert all(torch.equal(run.model.state_dict()[name], t) for name, t in before.items())
    run.step(2)


@pytest.mark.parametrize("state", [{"version": 3}, [1, 2.5, None, "x"], "text"])
def test_plain_extra_state_is_welcome(state: object) -> None:
    run = Run(Extra(state), corners(), **SMALL)
    run.step(2)
    run.reset()
    assert run.model.state == state


def test_a_model_may_not_be_played_with_without_logits() -> None:
    assert predicted(torch.tensor([[0.1], [0.9]]), 0.5).tolist() == [0, 1]
    assert predicted(torch.tensor([0.1, 0.9]), math.inf).tolist() == [0, 0]
    assert predicted({"logits": torch.eye(3)}).tolist() == [0, 1, 2]


W3 = torch.tensor([1.0, 1.0, 5.0])
MEANS = {  # loss, classes, whether it is a mean over rows
    "cross-entropy": (F.cross_entropy, 3, True),
    "smoothed labels": (nn.CrossEntropyLoss(label_smoothing=0.1), 3, True),
    "of a squeezed logit": (lambda a, b: F.binary_cross_entropy_with_logits(a.squeeze(), b.float()), 2, True),
    "pos_weight": (weighted, 2, True),
    "squares": (squares_of_signs, 2, True),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), 3, False),
    "class weights": (nn.CrossEntropyLoss(weight=W3), 3, False),
    "ignored": (nn.CrossEntropyLoss(ignore_index=2), 3, False),
    "masked": (lambda a, b: F.cross_entropy(a[b != 2], b[b != 2]), 3, False),
    "the worst": (lambda a, b: F.cross_entropy(a, b, reduction="none").max(), 3, False),
    "over the batch": (lambda a, b: F.cross_entropy(F.normalize(a, dim=0), b), 3, False),
    "root of mean squares": (lambda a, b: F.mse_loss(a, F.one_hot(b, 3).to(a)).sqrt(), 3, False),
}


@pytest.mark.parametrize("seed", [0, 1, 2, None], ids=["a", "b", "c", "zero head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", MEANS)
def test_ranks_may_share_a_loss_that_is_a_mean(name: str, dtype: torch.dtype, seed: int | None) -> None:
    loss, classes, is_mean = MEANS[name]
    net = mlp(classes if classes > 2 else 1, seed or 0).to(dtype)
    loss = copy.deepcopy(loss).to(dtype) if isinstance(loss, nn.Module) else loss
    if seed is None:  # all logits are equal then, and losses of all labels too
        nn.init.zeros_(net[2].weight), nn.init.zeros_(net[2].bias)
    before = copy.deepcopy(net.state_dict())
    with nothing_drawn():
        if is_mean:
            must_be_a_mean(net, corners(classes), loss, None)
        else:
            with pytest.raises(ValueError, match=r"loss must be the mean over the samples, .* is a sum, or weighted"):
                must_be_a_mean(net, corners(classes), loss, None)
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


def test_a_mean_is_known_of_probabilities_of_answers_in_a_dict_and_of_few_rows() -> None:
    chance = nn.Sequential(mlp(1), nn.Sigmoid())
    must_be_a_mean(chance, corners(2), on_probability, None)
    named = Shaped(mlp(), lambda z: {"logits": z})
    must_be_a_mean(named, corners(), lambda a, b: F.cross_entropy(a["logits"], b), None)
    with pytest.raises(ValueError, match="loss must be the mean"):
        must_be_a_mean(named, corners(), lambda a, b: F.cross_entropy(a["logits"], b, weight=W3), None)
    for n in (1, 2, 3):
        few = Dataset(corners().train_x[:n], torch.zeros(n).long(), corners().test_x, torch.zeros(20).long())
        must_be_a_mean(mlp(), few, F.cross_entropy, None)


@contextlib.contextmanager
def nothing_drawn() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
