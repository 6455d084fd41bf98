"""Optuna looks for settings of a loop and of a `Run`; and numbers in numpy's types, which a search may hand on."""

import json

import numpy as np
import pytest
import torch

import gsm_lab as gl
from tests.clients import plain

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(**more):
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), **more)


def accuracy(model):
    x, y = plain.samples()
    return float((model(x).argmax(1) == y).float().mean())


def test_a_study_over_a_loop():
    def objective(trial):
        asked = {
            "compression": trial.suggest_float("compression", 1, 100, log=True),
            "momentum": trial.suggest_float("momentum", 0.0, 0.99),
            "smoothing": trial.suggest_categorical("smoothing", [0.0, 0.9]),
        }
        model = plain.network()
        optimizer = plain.gsm(model, **asked)
        for epoch in range(3):
            plain.train(model, optimizer, epochs=1)
            trial.report(accuracy(model), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        gl.cut(model, compression=asked["compression"])
        return accuracy(model)

    done = study(pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1))
    done.optimize(objective, n_trials=8)
    assert {t.state.name for t in done.trials} <= {"COMPLETE", "PRUNED"}
    again = objective(optuna.trial.FixedTrial(done.best_params))
    assert again == done.best_value, "a trial is repeatable from its parameters"


def test_a_study_over_runs():
    few = plain.samples()
    data = gl.Dataset(*few, *few, name="few")

    def objective(trial):
        run = gl.Run(
            plain.network(),
            data,
            compression=trial.suggest_int("compression", 2, 40, step=2),
            momentum=trial.suggest_float("momentum", 0.5, 0.95),
            lr=trial.suggest_float("lr", 1e-3, 0.1, log=True),
            batch_size=trial.suggest_categorical("batch_size", [16, 32]),
            pretrain=1,
            epochs=2,
        )
        run.train(progress=False)
        assert json.dumps(run.knobs), "what was suggested is kept as plain numbers"
        return run.evaluate(cut=True)

    done = study()
    done.optimize(objective, n_trials=4)
    assert objective(optuna.trial.FixedTrial(done.best_params)) == done.best_value


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.uint8])
def test_numbers_in_numpys_types_are_numbers(kind, tmp_path):
    model, twin = plain.network(), plain.network()
    optimizer = plain.gsm(model, compression=kind(20))
    seen = plain.train(model, optimizer)
    seen.same_as(plain.train(twin, plain.gsm(twin, compression=20)))
    assert gl.cut(twin, compression=kind(7)) == 720 // 7
    optimizer.compression, optimizer.smoothing = kind(7), kind(0)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    other = plain.gsm(plain.network())
    other.load_state_dict(state)
    assert other.nonzeros == optimizer.nonzeros == 720 // 7


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_a_run_keeps_them_as_pythons(kind, tmp_path):
    few = plain.samples()
    data = gl.Dataset(*few, *few, name="few")
    asked = {"momentum": np.float64(0.9), "batch_size": np.int64(16), "pretrain": np.uint8(1), "seed": np.int32(3)}
    run = gl.Run(plain.network(), data, compression=kind(20), epochs=2, **asked)
    run.train(progress=False)
    run.set(compression=kind(10))
    run.save(tmp_path)
    twin = gl.Run(plain.network(), data, compression=20, epochs=2, momentum=0.9, batch_size=16, pretrain=1, seed=3)
    twin.train(progress=False)
    twin.set(compression=10)
    assert run.knobs == twin.knobs and run.nonzeros == twin.nonzeros == 72
    assert {type(value) for value in run.knobs.values()} <= {float, int, str}
    assert run.history.frame().equals(twin.history.frame())
