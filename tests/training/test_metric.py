"""A metric of one's own in place of accuracy, and runs on numbers: values against scikit-learn, and what is refused."""

import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab import Dataset, Metric, Run
from gsm_lab.cli.report import recipe
from gsm_lab.cli.summary import finding, results
from gsm_lab.metric import ACCURACY, R2, as_metric, metric_of
from gsm_lab.training import checkpoint
from gsm_lab.training.checkpoint import CheckpointError
from gsm_lab.training.evaluation import FEW, too_early
from tests.runs import differs, everything, mine, net
from tests.training.checkpoints import assert_same

TEN = {"compression": 10, "batch_size": 32, "lr": 0.01, "pretrain_lr": 0.02, "pretrain": 8, "epochs": 6,
       "evaluate_every": 10, "momentum": 0.9}  # fmt: skip


def diabetes() -> Dataset:
    x, y = load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), (y - y[:330].mean()) / y[:330].std()
    return Dataset(x[:330], y[:330], x[330:], y[330:], name="diabetes")


def mlp(inputs: int = 10, outputs: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, outputs))


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets) ** 0.5


RMSE = Metric("RMSE", root, higher_is_better=False, unit="kg")


@pytest.fixture(scope="module")
def progressed() -> Run:
    """A run on numbers, at its end; not to be changed."""
    run = Run(mlp(), diabetes(), **TEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.train(progress=False)
    return run


@pytest.fixture(scope="module")
def by_error() -> Run:
    """The same, measured by an error."""
    run = Run(mlp(), diabetes(), metric=RMSE, **TEN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.train(progress=False)
    return run


def answers(run: Run, cut: bool) -> np.ndarray:
    model = copy.deepcopy(run.model)
    if cut:
        gl.cut(model, nonzeros=run.nonzeros)
    with torch.no_grad():
        return model.eval()(run.data.test_x).double().numpy()


# ------------------------------------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("cut", [False, True])
def test_numbers_are_measured_by_r2_and_trained_by_squares(progressed, cut) -> None:
    expected = oracle.r2_score(progressed.data.test_y.numpy(), answers(progressed, cut))
    assert progressed.metric is R2 and progressed.loss is F.mse_loss
    assert progressed.evaluate(cut=cut) == pytest.approx(expected, abs=1e-6)
    assert progressed.history.frame()[R2.columns[cut]].dropna().iloc[-1] == np.float32(progressed.evaluate(cut=cut))
    assert 0.3 < progressed.evaluate() < 1  # it has learned something, so that this says something


@pytest.mark.parametrize("cut", [False, True])
def test_a_metric_of_ones_own_has_all_of_the_test_set(by_error, cut) -> None:
    expected = oracle.root_mean_squared_error(by_error.data.test_y.numpy(), answers(by_error, cut))
    assert by_error.evaluate(cut=cut) == pytest.approx(expected, rel=1e-6)
    assert list(by_error.history.frame().filter(like="RMSE")) == ["live_RMSE", "cut_RMSE"]
    assert by_error.history.metric == Metric("RMSE", None, False, "kg")


def test_the_metric_is_no_part_of_training(progressed, by_error) -> None:
    a, b = everything(progressed), everything(by_error)
    assert differs(a, b, ("history", "evaluations", "counters")) == []


def test_several_outputs_are_averaged_as_scikit_learn_does() -> None:
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(120, 10))
    y = np.stack([x[:, 0], 100 * x[:, 1] + 5, drawn.normal(size=120)], axis=1)
    run = Run(mlp(outputs=3), Dataset(x[:80], y[:80], x[80:], y[80:]), **TEN | {"lr": 1e-4, "pretrain_lr": 1e-4})
    run.step(3)
    assert run.evaluate() == pytest.approx(oracle.r2_score(run.data.test_y.numpy(), answers(run, False)), rel=1e-6)


CLASSIFIED = {
    "F1": (lambda z, y: oracle.f1_score(y, z.argmax(1), average="macro"), True),
    "log loss": (lambda z, y: F.cross_entropy(z, y), False),
    "top 2": (lambda z, y: (z.topk(2).indices == y[:, None]).any(1).float().mean(), True),
}


@pytest.mark.parametrize("name", CLASSIFIED)
def test_classes_by_another_metric(name: str) -> None:
    fn, higher = CLASSIFIED[name]
    run = Run(net(), mine(), metric=Metric(name, fn, higher), batch_size=8, pretrain=2, epochs=2, compression=4.0)
    run.step(5)
    z, y = torch.from_numpy(answers(run, False)), run.data.test_y
    expected = {
        "F1": lambda: oracle.f1_score(y, z.argmax(1), average="macro"),
        "log loss": lambda: oracle.log_loss(y, z.double().softmax(1)),
        "top 2": lambda: oracle.top_k_accuracy_score(y, z, k=2),
    }[name]()
    assert run.evaluate() == pytest.approx(expected, abs=1e-6)
    assert run.base is not None and run.history.metric.name == name


def test_accuracy_as_a_metric_of_ones_own_changes_nothing_but_what_it_is_called() -> None:
    settings = {"batch_size": 8, "pretrain": 1, "epochs": 3, "compression": 4.0, "evaluate_every": 7}
    counted = Run(net(), mine(), **settings)
    own = Run(
        net(), mine(), metric=Metric("hits", lambda z, y: (z.argmax(1) == y).double().mean(), percent=True), **settings
    )
    for run in (counted, own):
        run.step(20)
    assert differs(everything(counted), everything(own), ("history", "evaluations")) == []
    theirs, mines = counted.history.evaluation_frame(), own.history.evaluation_frame()
    np.testing.assert_array_equal(theirs.to_numpy(), mines.to_numpy())
    assert list(mines)[:3] == ["step", "live_hits", "cut_hits"]
    assert (
        Run(net(), mine(), metric=ACCURACY, **settings).history.frame().columns.equals(counted.history.frame().columns)
    )


def test_logits_are_taken_from_an_answer_that_has_some_and_all_tensors_of_others() -> None:
    def named(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"logits": model(x), "other": x}

    def loss(answer: Any, y: Tensor) -> Tensor:
        z = answer["logits"] if isinstance(answer, dict) else answer[0]
        return F.cross_entropy(z, y)

    small = {"batch_size": 8, "pretrain": 0, "compression": 4.0}
    run = Run(net(), mine(), loss=loss, output=named, metric=lambda z, y: F.cross_entropy(z, y), **small)
    pair = Run(
        net(),
        mine(),
        loss=loss,
        output=lambda m, x: (m(x), x),
        metric=lambda a, y: F.cross_entropy(a[0], y) + 0 * len(a[1]),
        **small,
    )
    assert (
        run.evaluate()
        == pair.evaluate()
        == pytest.approx(float(F.cross_entropy(torch.from_numpy(answers(run, False)), run.data.test_y)))
    )


def test_measuring_changes_nothing() -> None:
    def careless(outputs: Tensor, targets: Tensor) -> float:
        targets.zero_()
        outputs.add_(torch.rand(()))  # and draws
        return float(outputs.mean())

    data = diabetes()
    digest = data.digest
    run = Run(mlp(), data, metric=careless, **TEN)
    before, drawn = everything(run), torch.get_rng_state()
    assert run.evaluate() == run.evaluate()
    assert differs(before, everything(run)) == [] and torch.equal(torch.get_rng_state(), drawn)
    assert diabetes().digest == digest == Dataset(data.train_x, data.train_y, data.test_x, data.test_y).digest
    assert run.metric.name == "careless" and run.metric.higher_is_better


# ------------------------------------------------------------------------------------------------ models by name


def test_named_models_have_as_many_outputs_as_there_are_numbers() -> None:
    digits = gl.load("digits")
    of_train, of_test = (x.mean((1, 2, 3)) for x in (digits.train_x, digits.test_x))
    targets = [(of - of_train.mean()) / of_train.std() for of in (of_train, of_test)]
    data = Dataset(digits.train_x, targets[0], digits.test_x, targets[1], name="bright")
    run = Run("lenet300", data, compression=20, pretrain=4, epochs=2)
    assert run.model.fc3.out_features == 1
    assert (run.settings.lr, run.settings.momentum, run.settings.pretrain_lr) == (0.01, 0.985, 0.005)
    assert not gl.knobs.oscillates(0.01, 0.985, run.settings.weight_decay), "passive weights halve"
    run.step(5)
    assert 0.8 < run.base < 1 and run.evaluate() == pytest.approx(
        oracle.r2_score(data.test_y, answers(run, False)), abs=1e-5
    )
    angle = torch.linspace(0, 6, len(digits.train_y)), torch.linspace(0, 6, len(digits.test_y))
    turned = Dataset(
        digits.train_x, torch.stack([angle[0].cos(), angle[0].sin()], 1),
        digits.test_x, torch.stack([angle[1].cos(), angle[1].sin()], 1),
    )  # fmt: skip
    assert gl.methods.build("magnitude", model="lenet5", data=turned, pretrain=0).model.fc2.out_features == 2
    with pytest.raises(ValueError, match="a weight for each of the 2 outputs"):
        gl.methods.build("magnitude", model="lenet300", data=turned, compression=2e5)


@pytest.mark.filterwarnings("ignore:.*left no weight in layer")
@pytest.mark.parametrize("method", ["dns", "lobs", "fisher"])
def test_rivals_take_numbers(method: str) -> None:
    few = {"samples": 4, "rounds": 1} if method == "fisher" else {}
    run = gl.methods.build(
        method, model=mlp(), data=diabetes(), metric=RMSE, **TEN | few | {"pretrain": 1, "epochs": 2}
    )
    run.step(12)
    kept = run.cut()
    assert kept <= run.nonzeros
    expected = oracle.root_mean_squared_error(run.data.test_y.numpy(), answers(run, False))
    assert run.evaluate() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------------ saved and resumed


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.l1_loss(outputs, targets)


SAVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments, and those to be given again
    "usual": ({}, {}),
    "own metric": ({"metric": RMSE}, {"metric": RMSE}),
    "own metric and loss": ({"metric": RMSE, "loss": absolute}, {"metric": RMSE, "loss": absolute}),
}


@pytest.mark.parametrize("case", SAVED)
def test_it_resumes_to_the_bit(case: str, tmp_path: Path) -> None:
    given, again = SAVED[case]
    straight, half = (Run(mlp(), diabetes(), **TEN | given) for _ in range(2))
    straight.step(24)
    half.step(13)
    half.save(tmp_path)
    resumed = Run.resume(tmp_path, mlp(), diabetes(), **again)
    resumed.step(11)
    assert_same(resumed, straight)
    assert resumed.metric == straight.metric and resumed.history.metric == straight.history.metric
    twin = copy.deepcopy(resumed)
    assert twin.evaluate() == resumed.evaluate() and twin.metric == resumed.metric
    if "metric" not in given:
        assert pickle.loads(pickle.dumps(resumed)).evaluate() == resumed.evaluate()


def test_what_must_be_given_again(tmp_path: Path) -> None:
    folder = Run(mlp(), diabetes(), metric=RMSE, loss=absolute, **TEN).save(tmp_path)
    own = {"model": mlp(), "data": diabetes()}
    cases = [
        ({"loss": absolute}, r"the metric of .* is not in it \(RMSE, not .*; give it again: resume\(\.\.\., metric="),
        ({"metric": RMSE}, r"the loss of .* is not in it \(absolute, .*; give it again"),
        ({"metric": RMSE, "loss": F.mse_loss}, r"the loss of .* is not in it \(absolute, .*; give it again"),
        (
            {"metric": root, "loss": absolute},
            r"was measured by RMSE \(kg, lower is better\), and is to go on with metric",
        ),
        ({"metric": R2, "loss": absolute}, r"was measured by RMSE .* metric R2 \(higher"),
    ]
    for again, words in cases:
        with pytest.raises(CheckpointError, match=words):
            Run.resume(folder, **own, **again)
    Run.resume(folder, **own, loss=absolute, metric=Metric("RMSE", root, False, "kg", tolerance=1.0))
    Run(net(), mine(), batch_size=8, pretrain=0, compression=4.0).save(tmp_path / "classes")
    with pytest.raises(CheckpointError, match=r"was measured by accuracy \(%, higher is better\), and .* metric root"):
        Run.resume(tmp_path / "classes", net(), mine(), metric=root_of_hits)


def root_of_hits(z: Tensor, y: Tensor) -> Tensor:
    return (z.argmax(1) == y).double().mean() ** 0.5


root_of_hits.__name__ = "root"


def test_a_run_by_accuracy_is_written_as_ever(tmp_path: Path) -> None:
    run = Run(net(), mine(), batch_size=8, pretrain=1, epochs=2, compression=4.0)
    run.step(3)
    plain = checkpoint.read(run.save(tmp_path))
    assert list(plain) == [
        "version", "knobs", "method", "options", "own_model", "own_data", "own_loss", "own_output", "given", "picks",
        "data_digest", "history", "torch", "threads", "waiting", "shorn", "finished", "steps", "dense_steps", "base",
        "magnitude", "beside",
    ]  # fmt: skip
    assert list(plain["history"]) == ["events", "reactivations", "layers", "steps", "evaluations"]
    line = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "live_accuracy,cut_accuracy,kept/" in line


# ------------------------------------------------------------------------------------------------ what is refused


def flat(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[:, 0]


def regress(**given: Any) -> Callable[[], Run]:
    return lambda: Run(given.pop("model", None) or mlp(), given.pop("data", None) or diabetes(), **TEN | given)


def refusing(value: Any) -> Callable[[], Run]:
    def made(outputs: Tensor, targets: Tensor) -> Any:
        return value

    return regress(metric=made)


def same_targets() -> Dataset:
    data = diabetes()
    return Dataset(data.train_x, data.train_y, data.test_x, torch.full_like(data.test_y, 0.5), name="flat")


# fmt: off
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nan": (refusing(math.nan), ValueError, r"metric 'made' must return a finite number, got nan"),
    "infinity": (refusing(torch.tensor(math.inf)), ValueError, "metric 'made' must return a finite number, got inf"),
    "beyond float32": (refusing(1e39), ValueError, r"metric 'made' must return a finite number, got 1e\+39"),
    "vector": (refusing(torch.ones(3)), ValueError, r"metric 'made' must return one number, got shape \(3,\)"),
    "row": (refusing(torch.ones(1)), ValueError, r"metric 'made' must return one number, got shape \(1,\)"),
    "array": (refusing(np.ones((2, 1))), ValueError, r"metric 'made' must return one number, got shape \(2, 1\)"),
    "nothing": (refusing(None), ValueError, "metric 'made' must return one number, got None"),
    "text": (refusing("0.5"), ValueError, "metric 'made' must return one number, got '0.5'"),
    "flag": (refusing(True), ValueError, "metric 'made' must return one number, got True"),
    "complex": (refusing(torch.tensor(1j)), ValueError, "metric 'made' must return one number, got 1j"),
    "fails": (
        regress(metric=Metric("broken", lambda z, y: z[1000])), ValueError,
        r"metric 'broken' fails on outputs, \[112, 1\] of torch.float32, and targets, \[112, 1\] .*: IndexError",
    ),
    "truth first": (
        regress(metric=oracle.r2_score), ValueError,
        r"metric must take \(outputs, targets\) in this order, and the first argument of r2_score is 'y_true': lambda",
    ),
    "truth first, named": (lambda: Metric("R2", oracle.r2_score), ValueError, "lambda outputs, targets: r2_score"),
    "class": (regress(metric=dict), TypeError, "metric must be a function .* a gsm_lab.Metric, got <class 'dict'>"),
    "number": (regress(metric=0.5), TypeError, "metric must be a function .*, got 0.5"),
    "no function": (regress(metric=Metric("RMSE")), ValueError, "metric 'RMSE' must have a function"),
    "accuracy": (regress(metric=ACCURACY), ValueError, "metric must be another than accuracy for 'diabetes'"),
    "same targets": (regress(data=same_targets()), ValueError, "'flat' has the same target in all rows .* metric=..."),
    "flat outputs": (
        regress(output=flat), ValueError,
        r"loss does not take what the model gives, \[2\] .* targets \[2, 1\]|model must give \[n, 1\]",
    ),
    "flat outputs, own loss": (
        regress(output=flat, loss=lambda z, y: (z - y).square().mean()), ValueError,
        r"model must give \[n, 1\] for the 1 target a sample of 'diabetes', got \[2\] .*model\(x\)\[:, None\] adds",
    ),
    "flat outputs, own loss and metric": (
        regress(output=flat, loss=lambda z, y: (z - y).square().mean(), metric=root), ValueError, r"model must give",
    ),
    "too many outputs": (
        regress(model=mlp(outputs=2), loss=lambda z, y: z.square().mean()), ValueError,
        r"model must give \[n, 1\] for the 1 target a sample of 'diabetes', got \[2, 2\]",
    ),
    "labels": (regress(loss=nn.NLLLoss()), ValueError, r"loss does not take .*, and targets \[2, 1\] of torch.float32"),
    "one name too long": (lambda: Metric("x" * 41, root), ValueError, "name must be of one line, at most 40"),
    "markup": (lambda: Metric("<b>", root), ValueError, "name must be .* without '<', got '<b>'"),
    "two lines": (lambda: Metric("R\n2", root), ValueError, "name must be of one line"),
    "no name": (lambda: Metric("", root), ValueError, "name must be one such as 'RMSE'"),
    "a knob's column": (lambda: Metric("at", root), ValueError, "name must be one such as 'RMSE', and not '' or 'at'"),
    "unit of percent": (lambda: Metric("F1", root, unit="%"), ValueError, "unit must have no .* give percent=True"),
    "unit and percent": (lambda: Metric("F1", root, unit="kg", percent=True), ValueError, "unit must be '' where"),
    "tolerance": (lambda: Metric("F1", root, tolerance=-1), ValueError, "tolerance must be a finite number >= 0"),
    "way": (lambda: Metric("F1", root, "yes"), TypeError, "higher_is_better must be True or False"),
    "fn": (lambda: Metric("F1", 3), TypeError, r"fn must be a function of \(outputs, targets\), got 3"),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    call, error, words = REFUSED[case]
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_mean_and_a_spread_may_be_predicted_with_a_loss_and_a_metric_for_it() -> None:
    def likelihood(z: Tensor, y: Tensor) -> Tensor:
        return F.gaussian_nll_loss(z[:, :1], y, z[:, 1:].exp())

    run = Run(mlp(outputs=2), diabetes(), loss=likelihood, metric=Metric("NLL", likelihood, False), **TEN)
    before = run.evaluate()
    run.step(20)
    assert run.evaluate() < before


def test_a_metric_that_breaks_later_loses_nothing(tmp_path: Path) -> None:
    """It says so after a step that is whole: the run can be saved, and goes on with a metric that works."""
    broken = []

    def fragile(outputs: Tensor, targets: Tensor) -> float:
        return math.nan if broken else float(root(outputs, targets))

    run = Run(mlp(), diabetes(), metric=Metric("RMSE", fragile, False), **TEN)
    run.step(15)
    broken.append(True)
    with pytest.raises(ValueError, match="metric 'RMSE' must return a finite number, got nan"):
        run.step(10)
    assert run.steps == 20 == int(run.history.steps.array()["step"][-1])
    run.save(tmp_path)
    resumed = Run.resume(tmp_path, mlp(), diabetes(), metric=Metric("RMSE", root, False))
    assert differs(everything(resumed), everything(run)) == []
    resumed.step(10)
    assert resumed.history.evaluation_frame()["step"].tolist() == [0, 10, 30]


def test_one_that_breaks_when_the_gate_closes_can_be_asked_again() -> None:
    broken = []
    run = Run(mlp(), diabetes(), metric=lambda z, y: math.nan if broken else 0.5, **TEN)
    broken.append(True)
    with pytest.raises(ValueError, match="metric 'metric' must return a finite number"):
        run.pretrain()
    assert run.base is None and run.dense_left == 0
    broken.clear()
    run.step(1)
    assert run.base == 0.5 and run.steps == 1


# ------------------------------------------------------------------------------------------------ which way, how much


def test_too_early_knows_which_way_is_better(by_error, progressed) -> None:
    for run in (by_error, progressed):
        said = too_early(run)
        live, cut = run.evaluate(), run.evaluate(cut=True)
        worse = run.metric.cost(live, cut)
        assert worse > 0.2 and run.steps < FEW * gl.knobs.half_life(0.01, 0.9, run.settings.weight_decay)
        assert said.startswith(f"there were {run.steps:,} gated steps")
    better = copy.deepcopy(by_error)
    rows = better.history.evaluations.array()
    rows["cut_accuracy"][-1] = rows["live_accuracy"][-1] - 0.3  # an error that a cut lowers
    better.magnitude = float(rows["cut_accuracy"][-1])
    assert too_early(better) == ""
    better.magnitude -= 0.3
    assert "worse RMSE than the" in too_early(better) and " kg of the dense network" in too_early(better)


def test_the_summary_goes_by_the_metric(by_error, progressed) -> None:
    found = results(by_error)
    assert found.rows()[0][1] == f"{by_error.base:.4g} kg"
    live, cut = by_error.evaluate(), by_error.evaluate(cut=True)
    of = f"with {by_error.nonzeros:,} of {by_error.opt.weights:,} weights"
    assert finding(by_error, found) == f"At 10x the cut costs {cut - live:.3g} kg: test RMSE {cut:.4g} kg {of}"
    drop = progressed.evaluate() - progressed.evaluate(cut=True)
    assert f"costs {drop:.3g}: test R2 " in finding(progressed, results(progressed))
    assert "data=my_data, metric=my_metric" in recipe(by_error).replace("\n    ", " ")


def test_studies_go_by_the_metric(by_error) -> None:
    gap = gl.studies.trajectories.cut_gap(by_error)
    np.testing.assert_allclose(gap["gap"], gap["cut"] - gap["live"], rtol=1e-6)
    assert metric_of(gap) == by_error.history.metric and gap["metric"].unique().tolist() == [
        "RMSE (kg, lower is better)"
    ]
    row = gl.studies.trajectories.lossless_from(by_error, tolerance=10.0).iloc[0]
    assert row["step"] == 0 and row["share"] == 0 and row["metric"] == "RMSE (kg, lower is better)"
    assert math.isnan(gl.studies.trajectories.lossless_from(by_error).iloc[0]["step"])
    title = gl.figures.trajectories.cut_gap(gap).layout.title.text
    allowed = 0.005 * gap["live"].iloc[-1]
    assert f"A cut costs at most {allowed:.3g} kg of RMSE: never" in title
    figure = gl.figures.trajectories.cut_gap(gap, 10.0)
    assert "at most 10 kg of RMSE: from step 0 on" in figure.layout.title.text
    assert figure.layout.yaxis.title.text == "cut − live RMSE, kg"
    np.testing.assert_allclose(figure.data[0].y, gap["gap"])
    assert "%{customdata[0]:.4g} kg" in figure.data[0].hovertemplate


def test_metrics_are_not_drawn_on_one_axis(by_error, progressed) -> None:
    both = gl.studies.trajectories.cut_gap({"a": by_error, "b": progressed})
    with pytest.raises(ValueError, match=r"table must be of one metric, got RMSE .*, R2 "):
        gl.figures.trajectories.cut_gap(both)
    each = gl.studies.trajectories.lossless_from({"a": by_error, "b": progressed}, 10.0)
    assert each["metric"].tolist() == [str(RMSE), str(R2)]


def test_the_other_studies_and_their_figures() -> None:
    settings = {"model": mlp(), "data": diabetes(), "metric": RMSE, **TEN, "pretrain": 1, "epochs": 1}
    over = gl.studies.convergence.over_seeds(settings, range(2), 2, progress=False)
    last = over.groupby("seed").last()
    change = (last["cut"] - last["live"]).mean()
    figure = gl.figures.convergence.accuracies(over)
    assert f"the cut changes RMSE by {change:+.3g} kg (" in figure.layout.title.text
    assert figure.layout.yaxis.title.text == "test RMSE, kg"
    held = gl.studies.runs.controls(settings, after=(0.5,), seeds=[0], progress=False)
    frozen = held[held["variant"] == "frozen"].iloc[0]
    assert frozen["lost"] == pytest.approx(frozen["cut"] - held.iloc[0]["cut"])
    figure = gl.figures.reactivation.controls(held)
    assert "RMSE changes by (kg): freezing" in figure.layout.title.text and "kg" in figure.layout.yaxis.title.text
    assert "one test sample" not in figure.layout.xaxis.title.text
    dense = {k: v for k, v in settings.items() if k in ("metric", "batch_size", "pretrain_lr", "pretrain")}
    truth = gl.studies.sensitivity.alone(mlp(), diabetes(), [0], (0.5, 0.98), (0,), progress=False, **dense)
    assert metric_of(truth) == RMSE.described and "accuracy" not in truth
    run = Run(mlp(), diabetes(), **dense)
    run.pretrain()
    np.testing.assert_allclose(truth["score"] - truth["lost"], run.evaluate(), rtol=1e-6)
    figure = gl.figures.sensitivity.alone(truth)
    assert "is worse in RMSE by" in figure.layout.title.text and figure.layout.yaxis.title.text == "RMSE, worse by, kg"
    assert (
        metric_of(
            gl.studies.sensitivity.densities(
                mlp(), diabetes(), [0], False, **{**TEN, "metric": RMSE, "pretrain": 0, "epochs": 1}
            )
        )
        == RMSE.described
    )


def test_taylor_takes_numbers(progressed) -> None:
    from gsm_lab.studies.problem import Problem

    problem = Problem(progressed, progressed.data.train_x[:20], progressed.data.train_y[:20])
    with torch.no_grad():
        value = F.mse_loss(copy.deepcopy(progressed.model).double()(problem.x), problem.y)
    assert problem.y.dtype == torch.float64 and problem.value == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(sum(problem.sample_gradients()).sum(0) / 20, problem.gradient(), atol=1e-12)


# ------------------------------------------------------------------------------------------------ words

units = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=40).filter(
    lambda s: s == s.strip() and s.isprintable() and not set(s) & set("()%<")
)
names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=40).filter(
    lambda s: s == s.strip() and s.isprintable() and "<" not in s and s != "at"
)


@given(names, units, st.booleans(), st.booleans(), st.none() | st.floats(0, 1e300))
def test_words_say_which_metric_it_is(
    name: str, unit: str, higher: bool, percent: bool, tolerance: float | None
) -> None:
    metric = Metric(name, None, higher, "" if percent else unit, percent, tolerance)
    assert Metric.of(str(metric)) == metric
    assert metric.same_scale(Metric.of(str(metric)))


@given(st.booleans(), st.booleans(), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_which_is_better(higher: bool, percent: bool, before: float, after: float) -> None:
    metric = Metric("x", None, higher, "" if percent else "kg", percent, tolerance=0.5)
    cost = metric.cost(before, after)
    assert cost == (before - after if higher else after - before) == -metric.cost(after, before)
    words = metric.difference(before, after)
    assert words == "the same" or words.endswith("worse" if cost > 0 else "better")
    assert metric.lossless(before, before, 0.0) and (cost <= 0.5) <= metric.lossless(before, after, 0.5)
    assert metric.lossless(before, after, 0.5) <= (cost <= 0.5 + 2e-6 * (abs(before) + 1))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_accuracy_is_lossless_as_ever(before: float, after: float, tolerance: float) -> None:
    assert ACCURACY.lossless(before, after, tolerance) == gl.knobs.lossless(before, after, tolerance)
    assert ACCURACY.allowed(before) == gl.knobs.LOSSLESS


def test_how_values_are_written() -> None:
    assert [ACCURACY.shown(0.972), ACCURACY.shown(0.972, 1), RMSE.shown(54.3), R2.shown(0.48211), R2.shown(None)] == [
        "97.20%", "97.2%", "54.3 kg", "0.4821", "",
    ]  # fmt: skip
    assert [ACCURACY.axis, RMSE.axis, R2.axis] == ["test accuracy, %", "test RMSE, kg", "test R2"]
    assert [ACCURACY.scale, RMSE.scale] == [100, 1]
    assert [ACCURACY.difference(0.972, 0.96), RMSE.difference(54.3, 53.99), R2.difference(0.4, 0.4)] == [
        "1.20 points worse", "0.31 kg better", "the same",
    ]  # fmt: skip
    assert [ACCURACY.on_test(0.972), RMSE.on_test(54.3)] == ["97.20% test accuracy", "test RMSE 54.3 kg"]
    assert [ACCURACY.hover(), RMSE.hover(), RMSE.hover("x", True)] == ["%{y:.2f}%", "%{y:.4g} kg", "%{x:+.3g} kg"]
    assert [ACCURACY.cost_axis, R2.cost_axis] == ["live − cut accuracy, points", "live − cut R2"]
    assert as_metric(lambda z, y: 0.0).name == "metric" and as_metric(root).name == "root" and as_metric(None) is None
    assert RMSE.allowed(200.0) == 1.0 and R2.allowed(0.5) == 0.005 and json.loads(json.dumps(str(R2))) == str(R2)
