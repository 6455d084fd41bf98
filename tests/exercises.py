"""The exercises of the notebooks, done: a function for each, from a seed to the numbers that its answer speaks of.

What is done with the mouse is done here by the playground's own methods. Accuracies and shares are in percent. What the
answers promise stands in `tests.answers`.
"""

import contextlib
import copy
import itertools
import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

import gsm_lab as gl
from gsm_lab.methods import tickets
from gsm_lab.optim import keep_masks
from gsm_lab.studies import communication, convergence, decay, reactivation, sensitivity, taylor, trajectories

Numbers = dict[str, float]
USUAL = {"model": "lenet300", "data": "digits", "compression": 60}
QUICK = {"pretrain": 1}  # where the answer does not depend on how good the dense network is
SHORTER = {"pretrain": 10, "epochs": 30, "weight_decay": 0.015}  # the run of 00
SMOOTH = {"smoothing": 0.99, "ramp": 0.5, "freeze": 0.6}
DEEP = {"lr": 0.05, "pretrain": 30, "compression": 20, "epochs": 40}


def run_of(seed: int, **knobs: object) -> gl.Run:
    """LeNet-300-100 on the digits at 60x, unless told otherwise."""
    return gl.Run(**USUAL | knobs, seed=seed)


def trained(seed: int, **knobs: object) -> gl.Run:
    """The same at the end of its plan. It may warn that this is too short: some exercises are about that."""
    run = run_of(seed, **knobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.train(progress=False)
    return run


@contextlib.contextmanager
def playing(seed: int, steps: int, **knobs: object) -> Iterator[gl.Playground]:
    """The playground of notebook 01 after some steps."""
    playground = gl.Playground(run_of(seed, hold=1.0, **knobs))
    try:
        playground.step(steps)
        yield playground
    finally:
        playground.close()


def accuracies(run: gl.Run) -> Numbers:
    """Of the network as it is, and if it were cut now; and what the cut costs."""
    live, cut = 100 * run.evaluate(), 100 * run.evaluate(cut=True)
    return {"live": live, "cut": cut, "lost": live - cut}


def stays(run: gl.Run) -> torch.Tensor:
    """Which weights are among the Q largest of all, bool [N]."""
    masks = keep_masks(run.model, nonzeros=run.opt.nonzeros, optimizer=run.opt)
    return torch.cat([mask.flatten() for mask in masks.values()])


def densities(run: gl.Run) -> Numbers:
    """What part of each layer is among the Q largest weights of all."""
    sizes = run.history.layers
    parts = zip(sizes, stays(run).split(list(sizes.values())), strict=True)
    return {name.removesuffix(".weight"): 100 * part.double().mean().item() for name, part in parts}


# -- 00_start_here -----------------------------------------------------------------------------------------------------


def no_decay(seed: int) -> Numbers:
    return accuracies(trained(seed, **SHORTER | {"weight_decay": 0}))


def few_weights(seed: int) -> Numbers:
    usual, few = trained(seed, **SHORTER), trained(seed, compression=300, **SHORTER)
    return densities(few) | {"lost": accuracies(usual)["cut"] - accuracies(few)["cut"]}


def momentum_gone(seed: int) -> Numbers:
    with playing(seed, 1500) as playground:
        run = playground.run
        before, longer = accuracies(run), run.knobs
        playground.set(momentum=0.0)
        playground.step(1000)
        after = accuracies(run)
    half_lives = [gl.knobs.half_life(longer["lr"], momentum, longer["weight_decay"]) for momentum in (0.0, 0.9)]
    return {name: before[name] - after[name] for name in ("live", "cut")} | {"longer": half_lives[0] / half_lives[1]}


# -- 01_playground -----------------------------------------------------------------------------------------------------


def largest_compression(seed: int) -> Numbers:
    run = run_of(seed, compression=300, hold=1.0)
    run.step(3000)
    return {"lost at 300x": accuracies(run)["lost"]}


def schedule(seed: int) -> Numbers:
    """The loop of the notebook for two presets, with a learning rate that falls."""
    dense, found = run_of(seed, hold=0.6, epochs=45), {}
    dense.pretrain()
    for preset in gl.playground.PRESETS:
        if preset.name in ("GSM at 60×", "too little momentum"):
            run = copy.deepcopy(dense)
            run.set(**preset.knobs)
            run.step(1000)
            found |= {f"{preset.name}, falls, {what}": x for what, x in accuracies(run).items()}
    return found


def copied_state(seed: int) -> Numbers:
    with playing(seed, 5, **QUICK) as one:
        line, losses = one.state, one.run.history.frame()["loss"].to_numpy()
    with playing(seed + 7, 2, compression=20, **QUICK) as other:
        other.load_state(line)
        begun = other.run.steps
        same = other.state == line and json.loads(line)["knobs"]["seed"] == seed
        other.step(5)
        repeats = np.array_equal(other.run.history.frame()["loss"].to_numpy(), losses)
    return {"begun": begun, "same": same, "repeats": repeats}


# -- 02_taylor_vs_true_loss --------------------------------------------------------------------------------------------


def dense_run(seed: int) -> gl.Run:
    run = run_of(seed, epochs=50)
    run.pretrain()
    return run


def single_precision(seed: int) -> Numbers:
    run, found = dense_run(seed), {}
    for name, dtype in (("single", torch.float32), ("double", torch.float64)):
        problem = taylor.of_run(run, dtype=dtype)
        table = taylor.agreement(taylor.singles(problem, per_region=60))
        first = table[table["estimate"] == "first order"]
        found[name] = 100 * first["below_floor"].sum() / first["weights"].sum()
        found.setdefault("floor", problem.floor)
    return found


def random_sets(seed: int) -> Numbers:
    problem = taylor.of_run(dense_run(seed))
    rows = [
        taylor.sets(problem, shares=[0.001], seed=draw, hessian_diagonal=False).set_index("kind").loc["random"]
        for draw in range(8)
    ]
    errors = [100 * row["error of first order"] for row in rows]
    off = max(abs(row["first order"] - row["true"]) for row in rows)
    return {"least": min(errors), "most": max(errors), "absolute": off}


def fast_steps(seed: int) -> Numbers:
    """What single steps did to the loss, against what was predicted, at two learning rates."""
    found = {}
    for lr in (0.1, 0.3):
        run = run_of(seed, hold=1.0)
        run.step(300)
        run.set(lr=lr)
        table = taylor.steps(run, 40, second_order=False)
        found[f"rises at {lr}"] = 100 * (table["true"] > 0).mean()
        found[f"error at {lr}"] = 100 * table["error of first"].median()
    return found


# -- 03_reactivation ---------------------------------------------------------------------------------------------------


def compression_dragged_back(seed: int) -> Numbers:
    with playing(seed, 20, **QUICK) as playground:
        run = playground.run
        playground.set(compression=300)
        playground.step(20)
        few = run.opt.nonzeros
        playground.set(compression=60)
        playground.step(1)
        return {"few": few, "many": run.opt.nonzeros, "back": run.history.frame()["reactivated"].iloc[-1]}


def short_controls(seed: int) -> Numbers:
    settings = USUAL | {"epochs": 20, "weight_decay": 4.5e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = reactivation.controls(settings, after=[1, 4], seeds=[seed], progress=False)
    gained = -100 * runs[runs["variant"] == "forbidden"].set_index("after")["lost"]
    return {"gained, 1": gained[1.0], "gained, 4": gained[4.0], "gained": gained.mean()}


def patience_of_one(seed: int) -> Numbers:
    settings = USUAL | QUICK | {"epochs": 2, "seed": seed}
    table = reactivation.per_step(reactivation.watch(settings, [0.9], patience=1, progress=False)[0.9])
    different = int((table["woken"] != table["reactivated"]).sum())
    return {"differ": different, "reactivated": table["reactivated"].min()}


# -- 04_sparsity_trajectories ------------------------------------------------------------------------------------------


def rate_held(seed: int) -> Numbers:
    found = {}
    for name, more in (("falls", {}), ("held", {"hold": 1.0})):
        run = run_of(seed, epochs=100, weight_decay=4.5e-3, **more)
        sets = trajectories.ActiveSets(run)
        trajectories.train(run, progress=False)
        found |= {f"{what}, {name}": x for what, x in accuracies(run).items()}
        found[f"asked, {name}"] = sets.frame()["asked"].iloc[-1]
    gained = found["live, falls"] - found["live, held"]
    return found | {"asked more": found["asked, falls"] - found["asked, held"], "live gained": gained}


def swings_at_099(seed: int) -> Numbers:
    with playing(seed, 1000) as playground:
        playground.set(momentum=0.99)
        swings, knobs = "swings through zero" in playground.half_life.value, playground.run.knobs
        playground.step(150)
        after = 100 * playground.run.evaluate()
        playground.set(lr=0.01)
        playground.step(1000)
        end = 100 * playground.run.evaluate()
    product = round(knobs["lr"] * knobs["weight_decay"], 12)
    return {"swings": swings, "product": product, "critical": decay.critical(0.99), "after": after, "end": end}


def near_critical(seed: int) -> Numbers:
    """No seed in this one: how much faster than the closed form, at the notebook's matched rates."""
    eta, found, faster = 4.5e-3, {}, {}
    for momentum, lr in ((0.9, 0.1), (0.98, 0.02), (0.99, 0.01)):
        faster[momentum] = decay.decay_rate(lr, momentum, eta) / decay.closed_form_rate(lr, momentum, eta)
        found[f"{momentum} of critical"] = lr * eta / decay.critical(momentum)
    ratio = {"0.9 faster": faster[0.9], "0.98 faster than 0.9": faster[0.98] / faster[0.9]}
    return found | ratio | {"critical over that": decay.critical(0.98) / (0.02**2 / 4)}


def how_long(seed: int) -> Numbers:
    """No seed in this one either; the last number is for a rate that is held and then halved."""
    wanted = math.log(0.05 / 1e-4)
    exact = wanted / decay.decay_rate(0.1, 0.9, 3e-3)
    slower = 1000 + (wanted - 1000 * decay.decay_rate(0.1, 0.9, 3e-3)) / decay.decay_rate(0.05, 0.9, 3e-3)
    closed = wanted / decay.closed_form_rate(0.1, 0.9, 3e-3)
    return {"closed form": closed, "exact": exact, "with a schedule": slower}


# -- 05_rivals ---------------------------------------------------------------------------------------------------------


def no_momentum(seed: int) -> Numbers:
    run = run_of(seed, hold=1.0, momentum=0.0, **QUICK)
    run.step(1)
    seen = [[p.detach().clone() for p in run.opt.param_groups[0]["params"]]]
    passive = [torch.ones_like(p, dtype=torch.bool) for p in seen[0]]
    for _ in range(3):
        run.step(1)
        seen.append([p.detach().clone() for p in run.opt.param_groups[0]["params"]])
        passive = [p & ~run.opt.active(w) for p, w in zip(passive, run.opt.param_groups[0]["params"], strict=True)]
    shares = [
        (after[who] / before[who])[before[who].abs() > 1e-3]
        for pair in itertools.pairwise(seen)
        for before, after, who in zip(*pair, passive, strict=True)
    ]
    every = torch.cat(shares)
    lives = [gl.knobs.half_life(run.knobs["lr"], momentum, run.knobs["weight_decay"]) for momentum in (0.0, 0.9)]
    spread = float(every.max() - every.min())
    return {"spread of the share": spread, "half-lives over those at 0.9": lives[0] / lives[1]}


def pruned(seed: int, method: str, **settings: object) -> float:
    run = gl.methods.prune(method, data="digits", compression=60, progress=False, seed=seed, **settings)
    return 100 * run.evaluate()


def at_once(seed: int) -> Numbers:
    return {"once": pruned(seed, "magnitude", rounds=1), "many": pruned(seed, "magnitude")}


def admm_decay(seed: int) -> Numbers:
    found = {"gsm's": pruned(seed, "admm", weight_decay=3e-3), "own": pruned(seed, "admm")}
    return found | {"apart": abs(found["gsm's"] - found["own"])}


# -- 06_winning_tickets ------------------------------------------------------------------------------------------------


def another_seed(seed: int) -> Numbers:
    found, wired = [], []
    for one in (seed, seed + 1):
        with playing(one, 1000) as playground:
            found.append(densities(playground.run))
            wired.append(stays(playground.run))
    apart = max(100 * abs(found[0][name] / found[1][name] - 1) for name in found[0])
    return {"apart": apart, "shared": 100 * int((wired[0] & wired[1]).sum()) / int(wired[0].sum())}


def of_tickets(seed: int, compression: int, gate: dict[str, float], which: str) -> Numbers:
    """The notebook's trainings from the first values, for some of its masks."""
    settings = {"data": "digits", "compression": compression, "seed": seed, "epochs": 60}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = gl.Run(**settings, **gate)
        wiring = tickets.find(search, "gsm", progress=False)
        for name in which.split():
            if name in tickets.BY[1:]:
                mask = tickets.find(gl.Run(**settings), name)
            else:
                mask = wiring if name == "gsm" else tickets.shuffled(wiring, search.history.layers)
            run = tickets.worn(mask, **settings, pretrain=0, evaluate_every=66)
            run.train(progress=False)
            found[name] = 100 * run.evaluate()
    return found


def papers_gate(seed: int) -> Numbers:
    paper, smooth = (of_tickets(seed, 60, gate, "gsm")["gsm"] for gate in ({}, SMOOTH))
    return {"gsm": paper, "apart": abs(paper - smooth)}


def tickets_at_300(seed: int) -> Numbers:
    found = of_tickets(seed, 300, SMOOTH, "gsm shuffled magnitude random")
    return found | {"ahead": found["gsm"] - found["magnitude"]}


# -- 07_layer_sensitivity ----------------------------------------------------------------------------------------------


def starved(seed: int) -> Numbers:
    with playing(seed, 1000) as playground:
        run, before = playground.run, densities(playground.run)
        playground.set(compression=500)
        playground.step(500)
        after = densities(run)
        sizes = {name.removesuffix(".weight"): size for name, size in run.history.layers.items()}
    gave = {name: sizes[name] * (before[name] - after[name]) / 100 for name in sizes}
    left = {f"{name} left": 100 * after[name] / before[name] for name in sizes}
    return left | {"first of what was given": 100 * gave["fc1"] / sum(gave.values())}


def wide_last_layer(seed: int) -> Numbers:
    held, found = gl.load("digits").validation(287), {}
    for width in (30, 100):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            deep = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 80), nn.ReLU(), nn.Linear(80, 60),
                nn.ReLU(), nn.Linear(60, 40), nn.ReLU(), nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 10),
            )  # fmt: skip
        runs = sensitivity.densities(deep, held, seeds=[seed], progress=False, **DEEP)
        found[f"{width}"] = 100 * runs.set_index("layer")["density"]["11"]
    return found


def untrained(seed: int) -> Numbers:
    held = gl.load("digits").validation(287)
    truth = sensitivity.alone("lenet300", held, [seed], ratios=(0.5, 0.9, 0.99), progress=False, pretrain=0)
    raw, tuned = (truth[truth["finetune"] == epochs] for epochs in (0, 1))
    starving = 100 * tuned.loc[tuned["ratio"] == 0.99, "accuracy"]
    found = {"least": 100 * raw["accuracy"].min(), "most": 100 * raw["accuracy"].max(), "rise": raw["more"].abs().max()}
    whole = 100 * (tuned["accuracy"] + tuned["lost"]).iloc[0]
    return found | {"whole": whole, "starving, least": starving.min(), "starving, most": starving.max()}


# -- 09_distributed ----------------------------------------------------------------------------------------------------


def local_sets(seed: int, **more: object) -> pd.DataFrame:
    """The notebook's comparison of two ranks."""
    settings = {"data": gl.load("digits"), "model": "lenet300", "compression": 60, "epochs": 40, "pretrain": 5}
    looks = communication.local_gradients(settings | {"seed": seed} | more, ranks=2, progress=False)
    return communication.agreement(looks, factors=[1, 4])


def more_bytes(seed: int) -> Numbers:
    table = local_sets(seed)
    mean = 100 * table[table["layer"] == "fc1.weight"].groupby("factor")[["between", "single"]].mean()
    return {f"{what}, {k}": mean.loc[k, what] for what in mean for k in (1, 4)}


def larger_batch(seed: int) -> Numbers:
    found = {}
    for size in (64, 256):
        table = local_sets(seed, batch_size=size)
        top = table[(table["layer"] == "all") & (table["factor"] == 1)]
        found |= {f"{stage}, {size}": 100 * x for stage, x in top.groupby("stage")["between"].mean().items()}
    return found | {"late, less": found["late, 64"] - found["late, 256"], "steps": table["step"].max()}


def crossing(seed: int) -> Numbers:
    """Where the two schemes send the same; no seed in this one."""
    assumed = communication.AT_SCALE

    def over_dense(ranks: int) -> float:
        found = communication.cost(**assumed | {"ranks": [ranks]}).set_index("scheme")["bytes"]
        return found["local top Q, to everybody"] / found["dense all-reduce"]

    found = {"the figure, before": over_dense(23), "the figure, after": over_dense(25)}
    return found | {"four bytes": 2 * 4 * 60 / (4 + 4), "as above": 2 * 2 * 60 / (2 + 8)}


def last_bit(seed: int) -> Numbers:
    """Two copies of a network; the gradients of one are always the next larger float."""
    run = run_of(seed, hold=1.0)
    run.pretrain()
    models = [run.model, copy.deepcopy(run.model)]
    knobs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 3e-3, "compression": 60}
    gates = [gl.GSM(gl.param_groups(model), **knobs, fused=True) for model in models]
    random = np.random.default_rng(seed)
    for step in range(1, 401):
        rows = random.choice(len(run.data.train_x), 64, replace=False)
        for model, gate in zip(models, gates, strict=True):
            gate.zero_grad()
            nn.functional.cross_entropy(model(run.data.train_x[rows]), run.data.train_y[rows]).backward()
        for p in models[1].parameters():
            p.grad = torch.nextafter(p.grad, torch.full_like(p.grad, math.inf))
        active = []
        for model, gate in zip(models, gates, strict=True):
            gate.step()
            active.append([gate.active(p) for p in gl.models.prunable(model).values()])
        if not all(torch.equal(a, b) for a, b in zip(*active, strict=True)):
            return {"step": step}
    return {"step": math.inf}


# -- 10_the_papers_tables ----------------------------------------------------------------------------------------------


def decay_off(seed: int) -> Numbers:
    with playing(seed, 300) as playground:
        playground.set(weight_decay=0)
        playground.step(1500)
        return accuracies(playground.run)


def frozen(seed: int) -> Numbers:
    settings, found = {"data": "digits", "compression": 60, "epochs": 60, "weight_decay": 5e-3}, {}
    for name, more in (("plain", {}), ("frozen", {"freeze": 0.6})):
        looks = convergence.over_seeds(settings | more, seeds=[seed], looks=25, progress=False)
        late = looks[looks["step"] > 0.65 * looks["step"].max()]
        found[f"distance, {name}"] = 100 * looks["distance"].iloc[-1]
        found[f"turnover, {name}"] = 100 * late["turnover"].max()
        found[f"lost, {name}"] = 100 * (looks["live"] - looks["cut"]).iloc[-1]
    return found


def seeds_needed(seed: int) -> Numbers:
    """At how many seeds two standard errors of a difference of means are 0.03, by drawing them."""
    random = np.random.default_rng(seed)
    for n in range(2, 200):
        draws = random.normal(0, 0.1, (4000, 2, n)).mean(axis=2)
        if 2 * (draws[:, 0] - draws[:, 1]).std() <= 0.03:
            return {"seeds": n}
    return {"seeds": math.inf}
