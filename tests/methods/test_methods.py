"""What all rivals of GSM share: budgets, exact zeros, histories, repeating and resuming to the bit, and bad input."""

import copy
import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gsm_lab as gl
from gsm_lab import Dataset, Run, figures, methods
from gsm_lab.methods import tickets
from gsm_lab.methods.base import Rival
from gsm_lab.studies import reactivation, trajectories
from gsm_lab.studies.recording import Recorder
from gsm_lab.training.checkpoint import CheckpointError
from tests.runs import Breaks, Net, Tied, differs, equal, everything, mine, net

RIVALS = [name for name in methods.METHODS if name != "gsm"]
MAY_BE_FEWER = ("l1", "gates")  # their penalties may leave less than Q
IN_ROUNDS = ("magnitude", "lobs", "fisher")
# options with which each does what it is there for within a few steps
OPTIONS = {"l1": {"strength": 1e-2}, "admm": {"rho": 0.1}, "gates": {"sparsity": 1e-2, "bimodal": 2e-3, "gate_lr": 3.0}}
OPTIONS |= {name: {"rounds": 5} for name in IN_ROUNDS}
pytestmark = pytest.mark.filterwarnings("ignore:.*no weight")


def make(method: str, model: nn.Module | None = None, data: Dataset | None = None, **settings: object) -> Run:
    """A run of 368 weights with 10 steps an epoch, 40 gated ones in all, of which 24 pass before all is settled."""
    small = {"batch_size": 8, "pretrain": 1, "epochs": 4, "compression": 4.0, "evaluate_every": 15, "lr": 0.05}
    model = net() if model is None else model
    return methods.build(method, model=model, data=data or mine(), **(small | OPTIONS.get(method, {}) | settings))


def all_of(run: Run) -> dict[str, object]:
    return everything(run) | {"method": copy.deepcopy(run.method.state(run)), "own": dict(run.options)}


def flat(run: Run) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in methods.weights(run)])


class Watch:
    """Holds the mask of every step to the weights."""

    def __init__(self, run: Run) -> None:
        self.run, self.sizes = run, []
        run.recorders.append(self)

    def __call__(self, step: int, active: np.ndarray, weights: list[np.ndarray]) -> None:
        w = np.concatenate([part.reshape(-1) for part in weights])
        self.sizes.append(np.count_nonzero(w))
        if self.run.method.name != "admm" or self.run.method.settled:  # before, that of Z
            assert np.array_equal(w != 0, active), f"step {step}"
        if self.run.method.settled:
            assert not w[~active].any() and not np.signbit(w[~active]).any(), f"step {step}"


def ended(run: Run) -> None:
    """Train to the end and cut; assert the budget, that zeros are zeros, and that the history counted them."""
    watch = Watch(run)
    run.train(progress=False)
    assert watch.sizes == list(run.history.frame()["active"]) or run.method.name == "admm"
    kept, w = methods.finish(run), flat(run)
    assert kept == int(w.count_nonzero()) and torch.isfinite(w).all()
    assert kept == run.nonzeros or (run.method.name in MAY_BE_FEWER and 0 < kept < run.nonzeros)
    assert not torch.signbit(w[w == 0]).any()


# ------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"pretrain": 0},
        {"compression": 1},
        {"compression": 40},
        {"hold": 1.0},
        {"momentum": 0.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_a_run_ends_with_its_budget(method: str, knobs: dict) -> None:
    run = make(method, **knobs, **({"ramp": 0.4} if method == "dns" else {}))
    ended(run)
    if knobs.get("compression") != 1:
        assert run.method.settled and run.history.frame()["active"].iloc[-1] <= run.nonzeros


@pytest.mark.parametrize("until", [0, 0.05, 0.9, 1])
@pytest.mark.parametrize("method", [name for name in RIVALS if name != "random"])
def test_it_may_be_settled_at_any_time(method: str, until: float) -> None:
    run = make(method, until=until)
    ended(run)
    if until < 1:
        frame, last = (
            run.history.frame(),
            max(1, run.method.settles(run)) + 1,
        )  # some settle before a step, some after
        assert frame["active"].iloc[last - 1 :].max() <= run.nonzeros


@pytest.mark.parametrize("method", IN_ROUNDS)
@pytest.mark.parametrize("rounds", [1, 2, 7, 100])
def test_rounds_shrink_by_equal_factors(method: str, rounds: int) -> None:
    run = make(method, rounds=rounds, compression=10)
    ended(run)
    active = run.history.frame()["active"].to_numpy()
    due = [round(r / rounds * 24) for r in range(rounds)]  # 24 steps until all is settled
    expected = [max(36, round(368 * (36 / 368) ** (sum(d <= step for d in due) / rounds))) for step in range(40)]
    assert active.tolist() == expected


class Again(nn.Module):
    """A layer used twice, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.idle, self.out = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.one(torch.tanh(self.one(x)))))


def conv() -> nn.Module:
    layers = (
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, (1, 3), padding="same"),
        nn.Flatten(),
    )
    return nn.Sequential(nn.Unflatten(1, (1, 2, 4)), *layers, nn.Linear(10, 4))


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("kind", [Tied, Again, conv])
def test_other_models(method: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    if (method, kind) == ("lobs", Again):
        with pytest.raises(ValueError, match=r"lobs sees no inputs of layer 'idle\.weight'"):
            make(method, kind()).step()
        return
    ended(make(method, kind(), compression=3))


@pytest.mark.parametrize("method", RIVALS)
def test_a_move_of_the_epochs_passes_nothing_over(method: str) -> None:
    run = make(method)
    run.step(16)
    run.set(epochs=2)  # all should have been settled after 12 steps
    run.step(2)
    assert run.method.settled and int(flat(run).count_nonzero()) <= run.nonzeros
    run.step(2)
    assert run.finished


@pytest.mark.parametrize("method", RIVALS)
def test_it_begins_with_what_the_dense_epochs_made(method: str) -> None:
    run, dense = make(method, lr=1e-9, until=1) if method != "random" else make(method, lr=1e-9), make("gsm")
    run.pretrain()
    dense.pretrain()
    start = flat(dense)
    assert torch.equal(flat(run), start) and run.base == dense.base
    run.step()
    w = flat(run)
    if method != "lobs":  # which makes up for what it takes out
        torch.testing.assert_close(w[w != 0], start[w != 0], atol=1e-6, rtol=0)
    assert method in ("l1", "admm", "gates") or int((w == 0).sum()) > 36


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(RIVALS),
    st.floats(1, 90),
    st.integers(0, 2),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(0, 2**31 - 1),
)
def test_any_settings_keep_the_budget(
    method: str, compression: float, pretrain: int, epochs: int, until: float, seed: int
) -> None:
    own = {} if method == "random" else {"until": until}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ended(make(method, compression=compression, pretrain=pretrain, epochs=epochs, seed=seed, **own))


# ------------------------------------------------------------------------------------------------ to the bit


@pytest.mark.parametrize("method", RIVALS)
def test_it_repeats_itself_whatever_the_program_draws(method: str) -> None:
    straight, other = make(method), make(method)
    straight.step(30)
    for step in range(30):
        torch.manual_seed(step)
        other.step()
        other.evaluate(cut=True)
    assert differs(all_of(straight), all_of(other)) == []
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make(method).step(30)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("method", RIVALS)
def test_a_reset_begins_again(method: str) -> None:
    run, fresh = make(method), make(method)
    run.step(27)
    run.reset()
    fresh.step(27)
    run.step(27)
    assert differs(all_of(run), all_of(fresh)) == []
    with pytest.raises(ValueError, match="lenet5 takes images"):
        run.reset(model="lenet5")
    assert differs(all_of(run), all_of(fresh)) == []


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("at", ["dense", 0, 13, 24])
def test_it_resumes_to_the_bit(method: str, at: int | str, tmp_path: Path) -> None:
    straight, run = make(method), make(method)
    run.pretrain(4) if at == "dense" else run.pretrain()
    run.step(0 if at == "dense" else at)
    again = methods.resume(run.save(tmp_path), model=net(9), data=mine())
    assert differs(all_of(run), all_of(again)) == []
    again.step(31 - again.steps)
    straight.step(31)
    assert differs(all_of(straight), all_of(again)) == []


@pytest.mark.parametrize(("saved", "asked"), [("dns", "admm"), ("l1", "gsm"), ("gsm", "l1"), ("tickets", "gsm")])
def test_another_methods_run_is_not_resumed(saved: str, asked: str, tmp_path: Path) -> None:
    given = {"model": net(), "data": mine(), "batch_size": 8, "pretrain": 0}
    run = tickets.ticket("random", **given) if saved == "tickets" else make(saved)
    run.save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"is one of '{saved}', not of '{asked}': gsm_lab\.methods\.resume"):
        Run.resume(tmp_path, model=net(), data=mine(), method=methods.kind(asked)())
    assert type(methods.resume(tmp_path, model=net(), data=mine()).method) is type(run.method)


def test_an_older_file_goes_on_as_it_was_whatever_works_best_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("dns")
    run.step(5)
    del run.options["thresholds"]  # as if there had been none
    with monkeypatch.context() as before:
        knobs = {name: value for name, value in run.knobs.items() if name != "hold"}
        before.setattr(Run, "knobs", property(lambda run: knobs))
        run.save(tmp_path)
    monkeypatch.setitem(gl.knobs.RECIPES, ("corners", "net"), {"hold": 0.1})
    monkeypatch.setattr(methods.kind("dns"), "recipes", {("corners", "net"): {"thresholds": "size"}})
    now = make("dns")
    assert now.options["thresholds"] == "size" and now.knobs["hold"] == 0.1
    again = methods.resume(tmp_path, model=net(), data=mine())
    assert again.options["thresholds"] == "deviations" and again.knobs["hold"] == 0.6


@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("bad", [1, 11, 20, 30])
def test_a_step_that_is_refused_changes_nothing_and_can_be_done_again(method: str, bad: int) -> None:
    class Plain(Net):  # without batch norm, which sees each batch, and dropout, which draws
        def __init__(self) -> None:
            super().__init__(0.0)
            self.body[1] = nn.Identity()

    torch.manual_seed(2)
    model = Plain()
    run = make(method, copy.deepcopy(model), pretrain=0, loss=Breaks(bad))
    straight = make(method, model, pretrain=0)
    run.pretrain()
    run.step(bad - 1)
    run.method.before_step(run)  # what the step begins with; once more is once
    before = all_of(run)
    with pytest.raises(FloatingPointError, match="no weight was changed"):
        run.step()
    assert differs(before, all_of(run)) == []
    run.step(35 - run.steps)
    straight.step(35)
    assert differs(all_of(run), all_of(straight)) == []


# ------------------------------------------------------------------------------------------------ tickets


@pytest.mark.parametrize("by", tickets.BY)
def test_a_ticket_begins_with_the_first_weights_of_the_search(by: str, tmp_path: Path) -> None:
    model, knobs = net(4), {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 5, "data": mine()}
    first = copy.deepcopy(model.state_dict())
    search = Run(copy.deepcopy(model), **knobs)
    mask = tickets.find(search, by, progress=False)
    assert mask.dtype == torch.bool and int(mask.sum()) == search.nonzeros == 73
    if by != "random":  # the Q largest of what the search trained
        w = flat(search).abs()
        assert torch.equal(mask.nonzero()[:, 0], w.topk(73).indices.sort().values)
        assert (search.steps, search.dense_steps) == ((20, 10) if by == "gsm" else (0, 10))
    run = tickets.ticket(by, progress=False, model=model, retrain={"epochs": 3, "seed": 1}, **knobs)
    assert equal(dict(model.state_dict()), dict(first)), "the caller's model is left alone"
    start = torch.cat([first[name].reshape(-1) for name in run.history.layers])
    assert torch.equal(flat(run), torch.where(mask, start, 0.0)) and torch.equal(run.method.inside, mask)
    others = {name for name in first if name not in run.history.layers}
    assert all(torch.equal(run.model.state_dict()[name], first[name]) for name in others)
    straight = copy.deepcopy(run)
    run.step(7)
    assert not torch.equal(flat(run), flat(straight))
    again = methods.resume(run.save(tmp_path), model=net(), data=mine())
    for one in (run, again):
        one.reset()
        assert torch.equal(flat(one), torch.where(mask, start, 0.0)), "a reset keeps the mask"
    ended(run)
    run.reset(pretrain=1)
    ended(run)


@pytest.mark.parametrize(
    "when, steps",
    [
        ({"cut_at": 0.5}, 10),
        ({"cut_at": 0.0}, 1),
        ({"cut_at": 0.35, "ramp": 0.7}, 14),  # cut in steps, the last where the ramp ends
        ({"cut_at": 0.35, "ramp": 0.7, "freeze": 0.5}, 10),  # where the set is to be held, at once to Q
        ({"ramp": 0.5, "freeze": 0.5}, 20),  # not cut before the end
    ],
)
def test_a_search_ends_where_the_net_has_been_cut_on_the_way(when: dict[str, float], steps: int) -> None:
    """What is trained after the cut has no part in who stays."""
    knobs = {"batch_size": 8, "pretrain": 1, "epochs": 2, "compression": 12, "data": mine()} | when
    search, straight = Run(net(4), **knobs), Run(net(4), **knobs)
    mask = tickets.find(search, progress=False)
    assert search.steps == steps == tickets.steps_to_find(search)
    straight.train(progress=False)
    assert straight.steps == 20
    assert torch.equal(mask, flat(straight).abs() >= flat(straight).abs().topk(straight.nonzeros).values[-1])


def test_a_ticket_of_a_named_model_and_what_is_refused() -> None:
    run = tickets.ticket("magnitude", progress=False, pretrain=0, seed=3)
    start = torch.cat([p.detach().reshape(-1) for p in gl.models.prunable(Run(seed=3).model).values()])
    assert torch.equal(flat(run), torch.where(run.method.inside, start, 0.0))
    with pytest.raises(ValueError, match="by must be one of gsm, magnitude, random, got 'luck'"):
        tickets.ticket("luck")
    run.step(1)
    with pytest.raises(ValueError, match="run must have no gated steps behind it, or its network is not dense, got 1"):
        tickets.find(run, "magnitude")
    with pytest.raises(ValueError, match="retrain must not set seed"):
        tickets.ticket("random", retrain={"seed": 4})
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \(266200,\), got torch.bool of shape"):
        run.method.wear(run, torch.ones(4, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ the same recording


@pytest.mark.parametrize("method", RIVALS)
def test_recorders_and_studies_take_a_rival(method: str) -> None:
    run = make(method)
    recorder, paths, sets = Recorder(run, patience=3), trajectories.Paths(run), trajectories.ActiveSets(run)
    masks: list[np.ndarray] = []
    run.recorders.append(lambda step, active, weights: masks.append(active.copy()))
    trajectories.train(run, progress=False)
    log = np.array(masks)
    back = (log[1:] & ~log[:-1]).sum(axis=0)
    assert log.shape == (40, 368) and np.array_equal(recorder.active, log[-1])
    assert np.array_equal(recorder.reactivations, back) and run.history.reactivations == back.sum()
    assert method in ("dns", "admm", "l1", "gates") or not back.any()
    assert method != "dns" or back.any(), "weights are spliced in again"
    assert len(paths.frame()) and len(sets.frame())
    drawn = [
        trajectories.near_zero(run),
        trajectories.cut_gap(run),
        trajectories.lossless_from(run),
        trajectories.density(run),
    ]
    assert all(len(table) for table in drawn)
    assert figures.dashboard(run.history).data
    assert figures.reactivation.shares(reactivation.per_step(recorder)).data


# ------------------------------------------------------------------------------------------------ bad input


class Recurrent(nn.RNN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def test_unknown_methods_and_settings_are_refused() -> None:
    for asked in (methods.kind, methods.build, methods.prune):
        with pytest.raises(ValueError, match=r"method must be one of gsm, magnitude, l1, .*, random, got 'obd'"):
            asked("obd")
    with pytest.raises(ValueError, match="tickets are made by"):
        methods.build("tickets")
    with pytest.raises(ValueError, match="magnitude has no setting 'rho': its options are rounds, until, the knobs"):
        make("magnitude", rho=1)
    with pytest.raises(ValueError, match="until must be a number from 0 to 1, got 2"):
        make("dns", until=2)
    with pytest.raises(ValueError, match="rounds must be a whole number from 1 to 1,000, got 0"):
        make("lobs", rounds=0)
    with pytest.raises(ValueError, match="lobs takes plain Linear and Conv2d layers; 'weight_ih_l0' is in a Recurrent"):
        make("lobs", Recurrent(8, 4))


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_budget_of_fewer_weights_than_outputs_is_refused(method: str) -> None:
    assert make(method, compression=92).nonzeros == 4
    with pytest.raises(ValueError, match="each of the 4 outputs, at most 92, got 123, which leaves 2"):
        make(method, compression=123)


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_left_empty_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    model[2].weight.data.mul_(1e-6)
    knobs = {"model": model, "data": mine(), "batch_size": 8, "pretrain": 0, "epochs": 1, "lr": 1e-9, "compression": 8}
    with pytest.warns(UserWarning, match=r"^the cut left no weight in layer '2\.weight'$"):
        methods.prune("gsm", progress=False, **knobs)
    with pytest.warns(UserWarning, match=r"^l1 left no weight in layer '2\.weight'$"):
        methods.build("l1", **(knobs | {"until": 0})).step()


def test_scores_that_are_not_finite_are_refused() -> None:
    run = make("magnitude")
    assert isinstance(run.method, Rival)
    with pytest.raises(FloatingPointError, match="a score of magnitude is not finite after 0 steps"):
        run.method.best(run, torch.full((368,), torch.nan), 4)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=4), st.integers(0, 9))
def test_a_shuffled_mask_keeps_the_number_in_each_layer(flags, seed):
    mask = torch.tensor([flag for layer in flags for flag in layer])
    layers = {str(i): len(layer) for i, layer in enumerate(flags)}
    result = tickets.shuffled(mask, layers, seed)
    assert [int(part.sum()) for part in result.split([*layers.values()])] == [sum(layer) for layer in flags]
    assert torch.equal(result, tickets.shuffled(mask, layers, seed)) and result.dtype == torch.bool


def test_a_shuffled_mask_is_another_one():
    mask = torch.arange(1000) < 100
    a, b = (tickets.shuffled(mask, {"a": 500, "b": 500}, seed) for seed in (0, 1))
    assert not torch.equal(a, mask) and not torch.equal(a, b) and int(a[:500].sum()) == 100
    with pytest.raises(ValueError, match=r"layers must have 1,000 weights in all, as mask has, got 999"):
        tickets.shuffled(mask, {"a": 999})


@pytest.mark.parametrize("method", RIVALS)
def test_what_is_said_of_the_gate_is_refused(method: str) -> None:
    run = make(method)
    for name, value in {"smoothing": 0.9, "freeze": 0.5, "cut_at": 0.5, "ramp": 0.5}.items():
        if (method, name) == ("dns", "ramp"):  # its surgery follows C
            make(method, **{name: value})
            continue
        with pytest.raises(ValueError, match=f"{name} must be [01] for {method}, got {value}"):
            make(method, **{name: value})
        with pytest.raises(ValueError, match=f"{name} must be [01] for {method}"):
            run.set(lr=0.01, **{name: value})
    assert run.knobs["lr"] != 0.01, "nothing has moved"


def test_a_reset_may_change_an_option() -> None:
    run = make("magnitude", rounds=3)
    run.reset(rounds=2)
    assert run.options["rounds"] == 2
    run.reset()
    assert run.options["rounds"] == 2
    with pytest.raises(ValueError, match="rounds must be"):
        run.reset(rounds=0)
    with pytest.raises(ValueError, match="seed must be"):
        run.reset(rounds=5, seed=-1)
    run.reset()
    assert run.options["rounds"] == 2, "a refused reset leaves no trace"


def test_a_knob_that_means_nothing_is_no_reason_not_to_resume(tmp_path: Path) -> None:
    """Runs of rivals that were saved when such knobs were taken without a word."""
    run = make("magnitude")
    run.step(3)
    run.settings, run.given["ramp"] = dataclasses.replace(run.settings, ramp=0.4), 0.4
    again = methods.resume(run.save(tmp_path), model=net(), data=mine())
    assert again.knobs["ramp"] == 0 and again.steps == 3
    again.reset()


def test_a_method_or_placement_belongs_to_one_run() -> None:
    run = make("dns")
    run.step(3)
    before = all_of(run)
    for part in ("method", "placement"):
        with pytest.raises(ValueError, match=f"{part} must be a new one for each run, got the .* of another run"):
            Run(net(), mine(), **{part: getattr(run, part)})
    assert differs(before, all_of(run)) == []
    with pytest.raises(ValueError, match="lr must be"):
        Run(net(), mine(), method=(method := methods.kind("dns")()), lr=-1)
    Run(net(), mine(), method=method)  # what no run came of takes nothing
    copy.deepcopy(run).reset()
