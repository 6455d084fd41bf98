"""Learning rate, C, the frozen set and the cut on the way, against the plan that the settings lay out."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gsm_lab as gl
from gsm_lab import Run
from gsm_lab.optim import budget, keep_masks
from tests.runs import cosine, differs, equal, everything, mine, net, tiny


@pytest.mark.parametrize("hold", [0.0, 0.25, 0.6, 1.0])
def test_schedule_is_held_and_then_a_cosine_to_one_percent(hold: float) -> None:
    run = tiny(hold=hold, epochs=4, lr=0.2, pretrain=0)
    assert run.planned == 40 and not run.finished
    run.step(40)
    assert run.finished == (hold < 1)
    run.step(5)
    expected = []
    for step in range(45):
        share = min(1.0, max(0.0, (step - hold * 40) / (40 - hold * 40))) if hold < 1 else 0.0
        expected.append(0.2 * cosine(share))
    np.testing.assert_allclose(run.history.frame()["lr_scheduled"], expected, rtol=1e-6)
    assert run.lr == pytest.approx(0.2 * (0.01 if hold < 1 else 1))


def test_the_schedule_follows_its_knobs_live() -> None:
    run = tiny(hold=0.5, epochs=2, pretrain=0)
    run.step(15)
    assert run.lr < run.knobs["lr"]
    run.set(epochs=8)
    assert run.lr == run.knobs["lr"] and run.planned == 80
    run.set(lr=0.5)
    assert run.lr == 0.5


def test_a_ramp_raises_c_by_equal_factors_from_4_to_the_knob() -> None:
    run = tiny(compression=36, ramp=0.5, epochs=4, pretrain=0, smoothing=0.9)
    expected = [budget(368, compression=4 * 9 ** min(1, step / 20)) for step in range(30)]
    run.step(30)
    assert run.history.frame()["active"].tolist() == expected and expected[-1] == run.nonzeros == 10
    assert run.history.evaluation_frame().filter(like="kept/").sum(axis=1).eq(10).all()
    assert tiny(compression=3, ramp=1, pretrain=0).compression == 3


def test_freeze_holds_the_largest_q_and_lets_go_again() -> None:
    run = tiny(compression=20, freeze=0.5, epochs=4, pretrain=0)
    run.step(20)
    kept = torch.cat([mask.view(-1) for mask in keep_masks(run.model, nonzeros=18).values()])
    assert not run.method.frozen and run.opt.candidates is None
    for _ in range(5):
        run.step()
        assert run.method.frozen and not (run.opt.active_mask() & ~kept).any()
    run.set(freeze=1)
    run.step(3)
    assert not run.method.frozen and run.opt.candidates is None and (run.opt.active_mask() & ~kept).any()


@pytest.mark.parametrize("freeze", [0.25, 1])
def test_cut_at_cuts_for_good_and_trains_on_with_the_dense_decay(freeze: float, tmp_path: Path) -> None:
    def flat(run: Run) -> Tensor:
        return torch.cat([p.detach().view(-1) for p in gl.models.prunable(run.model).values()])

    run = tiny(compression=20, freeze=freeze, cut_at=0.5, epochs=4, pretrain=0, weight_decay=0.01, pretrain_decay=2e-4)
    run.step(19)
    assert not run.method.was_cut and run.method.frozen == (freeze < 1) and flat(run).all()
    other, uncut = (Run.resume(run.save(tmp_path), model=net(), data=mine()) for _ in range(2))
    uncut.set(cut_at=1)
    uncut.step()
    assert flat(uncut).all()
    largest = torch.cat([mask.view(-1) for mask in keep_masks(uncut.model, nonzeros=18).values()])
    run.step()
    assert torch.equal(flat(run), torch.where(largest, flat(uncut), 0.0))
    for _ in range(20):
        run.step()
        assert run.method.was_cut and run.method.frozen and torch.equal(flat(run) != 0, largest)
        assert run.opt.param_groups[0]["weight_decay"] == 2e-4
    assert run.evaluate() == run.evaluate(cut=True)
    other.step(12)
    again = Run.resume(other.save(tmp_path), model=net(), data=mine())
    again.step(9)
    assert equal(everything(run), everything(again))
    for moved in ({"cut_at": 1}, {"epochs": 40}, {"compression": 1}, {"compression": 10}, {"compression": 20}):
        run.set(**moved)
        run.step(3)
        assert run.method.was_cut and run.opt.param_groups[0]["weight_decay"] == 2e-4
        assert torch.equal(flat(run) != 0, largest), f"{moved} brought something back"
    run.set(compression=40)
    run.step(2)
    assert int((flat(run) != 0).sum()) == run.nonzeros == 9 and not (flat(run)[~largest]).any()
    run.reset()
    assert not run.method.was_cut and not run.method.frozen


def test_cut_at_on_a_ramp_cuts_on_as_c_rises(tmp_path: Path) -> None:
    def flat(run: Run) -> Tensor:
        return torch.cat([p.detach().view(-1) for p in gl.models.prunable(run.model).values()])

    run = tiny(compression=40, ramp=0.75, cut_at=0.25, smoothing=0.9, epochs=8, pretrain=1, weight_decay=0.01)
    run.step(19)
    assert not run.method.was_cut and flat(run).all()
    left = []
    for step in range(20, 80):
        before = flat(run)
        run.step()
        stays = flat(run) != 0
        q = budget(run.opt.weights, compression=run.compression)
        assert run.method.was_cut and int(stays.sum()) == q, f"after step {step}"  # each is over a percent
        assert not stays[before == 0].any(), "one that was cut came back"
        left.append(q)
        if step == 45:
            again = Run.resume(run.save(tmp_path), model=net(), data=mine())
    again.step(79 - 45)
    assert equal(everything(run), everything(again))
    assert left == sorted(left, reverse=True) and len(set(left)) > 10 and left[40:] == [run.nonzeros] * 20
    assert run.evaluate() == run.evaluate(cut=True)


def test_cut_at_on_a_ramp_waits_until_a_percent_has_to_go(tmp_path: Path) -> None:
    run = gl.Run(compression=60, ramp=0.9, cut_at=0.0, epochs=20, pretrain=0, seed=1)
    left, again = [], None
    for _ in range(30):
        run.step()
        left.append(sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values()))
        if again is None and budget(run.opt.weights, compression=run.compression) < left[-1]:
            again = Run.resume(run.save(tmp_path))  # between two cuts
            again.set(lr=run.knobs["lr"])
            assert again.opt.nonzeros == run.opt.nonzeros == left[-1]
    again.step(30 - again.steps)
    assert equal(everything(run), everything(again))
    cuts = [(a, b) for a, b in itertools.pairwise(left) if b != a]
    assert 3 < len(cuts) < 29 and all(0.97 * a < b <= 0.99 * a for a, b in cuts)


@pytest.mark.parametrize(("freeze", "cut_at"), [(0.25, 0.5), (0.5, 0.25)])
def test_a_frozen_set_is_cut_to_the_full_c_whatever_the_ramp(freeze: float, cut_at: float) -> None:
    run = tiny(compression=40, ramp=1, cut_at=cut_at, freeze=freeze, epochs=8, pretrain=0)
    for step in range(1, 81):
        run.step()
        if step > freeze * 80:
            assert run.opt.active_mask().sum() <= run.nonzeros == 9
    assert sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values()) == 9


def test_a_ramp_may_be_moved_after_the_cut() -> None:
    def left() -> int:
        return sum(int(p.count_nonzero()) for p in gl.models.prunable(run.model).values())

    run = gl.Run(compression=60, ramp=0.9, cut_at=0.1, epochs=4, pretrain=0, smoothing=0.9)
    run.step(20)
    first = left()
    run.set(compression=2)
    run.step(3)
    assert left() == first == run.opt.nonzeros
    run.set(compression=200, ramp=0)
    run.step()
    assert left() == run.nonzeros == run.opt.nonzeros == 1331 >= run.opt.active_mask().sum()
    run.set(compression=60, ramp=0.9, epochs=40)
    run.step(10)
    assert left() == 1331
    run.reset(epochs=4, compression=60)
    run.train(progress=False)
    assert run.finished and left() == run.nonzeros == 4436


def test_train_goes_to_the_end_of_the_plan_and_evaluates() -> None:
    run = tiny(epochs=3, evaluate_every=1000)
    run.step(4)
    run.train(progress=False)
    assert run.steps == 30 and run.finished
    evaluations = run.history.evaluation_frame()
    assert evaluations["step"].tolist() == [0, 30]
    assert evaluations["live_accuracy"].iloc[-1] == np.float32(run.evaluate())
    assert evaluations["cut_accuracy"].iloc[-1] == np.float32(run.evaluate(cut=True))
    run.train(progress=False)
    assert run.steps == 30
    run.train(epochs=0.5, progress=False)
    assert run.steps == 35


@pytest.mark.parametrize("epochs", [-1, math.nan, math.inf])
def test_train_refuses_such_epochs(epochs: float) -> None:
    with pytest.raises(ValueError, match=f"epochs must be a finite number >= 0, got {epochs!r}"):
        tiny().train(epochs)


@pytest.mark.parametrize("n", [-1, True, 1.0, "3", None])
def test_step_refuses_what_is_no_number_of_steps(n: object) -> None:
    run = tiny()
    with pytest.raises(ValueError, match=f"n must be a whole number of steps >= 0, got {n!r}"):
        run.step(n)
    assert run.dense_steps == 0


def test_no_steps_are_no_steps() -> None:
    run = tiny()
    before = everything(run)
    run.step(0)
    run.pretrain(0)
    run.train(0, progress=False)
    assert run.dense_left == 0, "train() does the dense epochs"
    fresh = tiny()
    fresh.step(0)
    assert differs(before, everything(fresh)) == []


def test_train_shows_a_bar_with_phase_loss_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    tiny(epochs=2).train()
    shown = capsys.readouterr().err
    assert "dense" in shown and "gate closed, C = 4" in shown and "loss=" in shown
    assert "30/30" in shown and "step/s" in shown
    tiny(epochs=1).train(progress=False)
    assert capsys.readouterr() == ("", "")


def test_steps_show_one_where_it_is_asked_for_and_are_the_same_steps(capsys: pytest.CaptureFixture[str]) -> None:
    runs = tiny(pretrain=1), tiny(pretrain=1)
    runs[0].step(25)
    assert capsys.readouterr() == ("", "")
    runs[1].step(25, progress=True)
    dense = runs[1].dense_steps
    shown = capsys.readouterr().err
    assert f"{25 + dense}/{25 + dense}" in shown and "gate closed, C = 4" in shown and "loss=" in shown
    assert differs(everything(runs[0]), everything(runs[1])) == []
    runs[1].step(0, progress=True)
    assert capsys.readouterr() == ("", "") and runs[1].steps == 25
    with pytest.raises(TypeError, match="progress must be True or False, got 'yes'"):
        runs[1].step(1, progress="yes")
    assert runs[1].steps == 25
