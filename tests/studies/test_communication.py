"""Training on several ranks: real processes against loops in one, and formulas against sums done by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gsm_lab.data import Dataset, load
from gsm_lab.distributed.launch import on_ranks
from gsm_lab.models import build, prunable
from gsm_lab.optim.ranks import digits
from gsm_lab.studies import communication as study
from gsm_lab.studies.sparse_exchange import local_top
from gsm_lab.training.run import Run
from tests.distributed import hook_workers

SMALL = {"data": "digits", "model": "lenet300", "compression": 60, "pretrain": 1, "epochs": 1, "batch_size": 64}


def given() -> dict[str, object]:
    """`SMALL`, with data that no rank has to load: that takes longer than to train."""
    return SMALL | {"data": load("digits")}


@pytest.fixture(scope="module")
def looks() -> list[study.RankGradients]:
    return study.local_gradients(given(), ranks=4, steps=[1, 5, 12, 22], progress=False)


# ------------------------------------------------------------------------------------------------ real processes


def test_looks_hold_what_the_settings_promise(looks):
    run = Run(**SMALL)
    assert [look.step for look in looks] == [1, 5, 12, 22]
    for look in looks:
        assert look.planned == run.planned == 22 and look.epoch == look.step / 22
        assert look.layers == {"fc1.weight": 235_200, "fc2.weight": 30_000, "fc3.weight": 1_000}
        assert look.nonzeros == 4436 == look.active.sum()
        assert look.weights.shape == look.averaged.shape == look.local.shape[1:] == (266_200,)


def test_every_rank_opens_its_gate_for_the_top_q_of_the_averaged_gradient(looks):
    for look in looks:
        assert look.same
        metric = torch.from_numpy(look.weights * look.averaged).abs()
        np.testing.assert_array_equal(np.flatnonzero(look.active), np.sort(metric.topk(look.nonzeros).indices))


def test_local_gradients_are_those_of_the_dealt_out_batch(looks):
    """A loop over the parts of the batch in one process, from the weights that were looked at."""
    run = Run(**SMALL)
    run.pretrain()
    for look in looks[:1]:  # biases are known at the first step only
        ranks = len(look.local)
        x, y = run.batches.batch(run.dense_steps + look.step - 1)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(look.weights), prunable(run.model).values())
        for rank in range(ranks):
            loss = torch.nn.functional.cross_entropy(run.model(x[rank::ranks]), y[rank::ranks])
            grads = torch.autograd.grad(loss, list(prunable(run.model).values()))
            flat = torch.cat([g.reshape(-1) for g in grads]).numpy()
            np.testing.assert_allclose(look.local[rank], flat, rtol=1e-3, atol=1e-6)


def test_the_average_is_the_mean_of_the_local_gradients(looks):
    for look in looks:
        np.testing.assert_allclose(look.averaged, look.local.mean(axis=0), rtol=1e-4, atol=1e-8)


def test_ranks_train_the_network_that_one_process_would(looks):
    run = Run(**SMALL)
    run.pretrain()
    for look in looks[:3]:
        run.step(look.step - 1 - run.steps)
        weights = torch.cat([p.detach().reshape(-1) for p in prunable(run.model).values()]).numpy()
        assert np.abs(weights - look.weights).max() < 2e-3  # rounding, and then now and then another weight is active


# ------------------------------------------------------------------------------------------------ agreement


def by_hand(look: study.RankGradients, factor: float, parts: dict[str, slice]) -> dict[str, dict[str, float]]:
    """With `torch.topk` and Python sets: the columns of each part of the weights, by its name."""

    def top(gradient: np.ndarray, q: int) -> set[int]:
        metric = torch.from_numpy(look.weights).mul(torch.from_numpy(gradient)).abs()
        return set(metric.topk(min(q, len(metric))).indices.tolist())

    wanted = top(look.averaged, look.nonzeros)
    local = [top(gradient, int(factor * look.nonzeros)) for gradient in look.local]
    mean = np.zeros_like(look.averaged, dtype=np.float64)
    for gradient in look.local:
        sent = torch.from_numpy(look.weights * gradient).abs().topk(int(factor * look.nonzeros)).indices.numpy()
        mean[sent] += gradient[sent] / len(look.local)
    chosen = top(mean.astype(np.float32), look.nonzeros)
    return {
        name: in_a_part(*({i for i in one if part.start <= i < part.stop} for one in (wanted, chosen, *local)))
        for name, part in parts.items()
    }


def in_a_part(wanted: set[int], chosen: set[int], *local: set[int]) -> dict[str, float]:
    single = [len(one & wanted) / len(wanted) for one in local]
    pairs = [2 * len(a & b) / (len(a) + len(b)) for a, b in itertools.combinations(local, 2)]
    return {
        "wanted": len(wanted), "single": np.mean(single), "least": min(single),
        "intersection": len(set.intersection(*local) & wanted) / len(wanted),
        "union": len(set.union(*local) & wanted) / len(wanted),
        "chosen": len(chosen & wanted) / len(wanted), "between": np.mean(pairs), "travel": len(set.union(*local)),
    }  # fmt: skip


def test_agreement_equals_a_loop_with_topk_and_sets(looks):
    table = study.agreement(looks, factors=(1, 2.5))
    assert len(table) == len(looks) * 2 * 4
    parts = {"fc1.weight": slice(0, 235_200), "fc2.weight": slice(235_200, 265_200),
             "fc3.weight": slice(265_200, 266_200), "all": slice(0, 266_200)}  # fmt: skip
    for look, factor in itertools.product(looks[::3], (1, 2.5)):
        for layer, expected in by_hand(look, factor, parts).items():
            rows = table[(table["step"] == look.step) & (table["factor"] == factor) & (table["layer"] == layer)]
            size = parts[layer].stop - parts[layer].start
            assert len(rows) == 1 and rows["same"].all() and rows["weights"].item() == size
            for column, value in expected.items():
                assert rows[column].item() == pytest.approx(value, rel=1e-12), (look.step, factor, layer, column)


def made(
    local: list[list[float]], weights: list[float], q: int, planned: int = 9, step: int = 1
) -> study.RankGradients:
    local, weights = np.array(local, np.float32), np.array(weights, np.float32)
    averaged = local.mean(axis=0)
    order = np.argsort(-np.abs(weights * averaged), kind="stable")[:q]
    active = np.isin(np.arange(len(weights)), order)
    layers = {"a.weight": len(weights) // 2, "b.weight": len(weights) - len(weights) // 2}
    return study.RankGradients(step, planned, step / 3, weights, local, averaged, active, True, q, layers)


def test_agreement_on_six_weights():
    # On weight 0 the ranks cancel out, so the global top 2 are 1 and 3. Of the top 3, rank 0 holds 0, 1, 3 and rank 1
    # holds 0, 1, 2; of the top 4, rank 0 has only three to offer.
    look = made([[5, 4, 0, 3, 0, 0], [-5, 4, 3.5, 3, 0, 0]], [1] * 6, q=2)
    rows = study.agreement([look], factors=(1, 1.5, 2)).query("layer == 'all'").set_index("factor")
    assert list(rows["single"]) == [0.5, 0.75, 1]
    assert list(rows["least"]) == [0.5, 0.5, 1]
    assert list(rows["union"]) == [0.5, 1, 1]
    assert list(rows["intersection"]) == [0.5, 0.5, 1]
    assert list(rows["between"]) == pytest.approx([1, 4 / 6, 6 / 7])
    assert list(rows["travel"]) == [2, 4, 4]
    assert list(rows["chosen"]) == [0.5, 0.5, 1]  # of 1.5 Q, weight 2 (half of 3.5) arrives before weight 3 (half of 3)


def test_stages_are_thirds_of_the_run_and_layers_nobody_wants_have_no_recall():
    looks = [made([[9, 8, 0, 0], [9, 8, 0, 0]], [1] * 4, q=2, step=step) for step in (1, 3, 4, 6, 7, 9)]
    table = study.agreement(looks, factors=[1])
    assert list(table[table["layer"] == "all"]["stage"]) == ["early"] * 2 + ["middle"] * 2 + ["late"] * 2
    empty = table[table["layer"] == "b.weight"]
    assert (empty["wanted"] == 0).all() and empty[["single", "union", "intersection", "between"]].isna().all(axis=None)


def test_a_gate_that_opened_for_another_set_shows():
    look = made([[9, 8, 0, 0], [9, 8, 0, 0]], [1] * 4, q=2)
    look.active[:] = [True, False, True, False]
    assert not study.agreement([look], factors=[1])["same"].any()


# ------------------------------------------------------------------------------------------------ quantised


def test_fine_levels_keep_the_set_and_signs_make_it_one_of_size(looks):
    table = study.quantised(looks, bits=(16, 1)).set_index("bits")
    assert (table.loc[16, "recall"] > 0.95).all()
    assert (table.loc[1, "recall"].to_numpy() < table.loc[16, "recall"].to_numpy()).all()


def test_one_bit_alike_on_all_ranks_leaves_the_largest_weights():
    gradient = [1.0, -2, 3, -4, 5, -6]
    look = made([gradient, gradient], [6, 5, 4, 3, 2, 1], q=2)
    row = study.quantised([look], bits=[1]).iloc[0]
    # scales differ by layer: mean |g| 2 in a, 5 in b, so |w| * scale is 12, 10, 8, 15, 10, 5
    assert row["by_size"] == 0.5
    assert study.quantised([look], bits=[1], seed=1).equals(study.quantised([look], bits=[1], seed=2))


def test_rounding_is_right_in_the_mean_and_stays_on_its_levels():
    from gsm_lab.studies.agreement import _rounded

    random = np.random.default_rng(0)
    gradient = np.linspace(-1, 1, 41, dtype=np.float32)
    rounded = np.stack([_rounded(gradient, 3, random) for _ in range(4000)])
    np.testing.assert_allclose(np.unique(rounded), np.arange(-3, 4) / 3, atol=1e-6)
    np.testing.assert_allclose(rounded.mean(axis=0), gradient, atol=0.02)
    assert not _rounded(np.zeros(3, np.float32), 8, random).any()


# ------------------------------------------------------------------------------------------------ the hook


@pytest.fixture(scope="module")
def exchanged() -> dict[int, list]:
    """What the ranks exchanged, of two ranks and of four; and on two, what came of several buckets."""
    sent = [None, 9, 50, None]
    ours = {"arguments": {"sent": sent}, "imports": ["torch._dynamo"], "progress": False}
    two = on_ranks(hook_workers.exchanged_and_refused, 2, **ours)
    return {2: two, 4: on_ranks(hook_workers.exchanged, 4, **ours)}


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_hook_averages_what_a_loop_over_the_ranks_would(exchanged, ranks):
    results = [found[:2] for found in exchanged[ranks]]
    weights = torch.cat([p.reshape(-1) for p in results[0][1] if p.ndim >= 2])
    for step, first in enumerate(results[0][0]):
        found = [steps[step] for steps, _ in results]
        expected = [torch.stack(gs).mean(0) for gs in zip(*(one["alone"] for one in found), strict=True)]
        flats = [torch.cat([g.reshape(-1) for g in one["alone"] if g.ndim >= 2]) for one in found]
        sent = first["sent"]
        if sent is not None:
            mean = torch.zeros_like(weights)
            for flat in flats:
                top = (flat * weights).abs().topk(sent).indices
                mean[top] += flat[top] / ranks
            parts = iter(mean.split([g.numel() for g in expected if g.ndim >= 2]))
            expected = [next(parts).view_as(g) if g.ndim >= 2 else g for g in expected]
        for one, flat in zip(found, flats, strict=True):
            torch.testing.assert_close(one["averaged"], expected, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(one["local"], flat, rtol=1e-5, atol=1e-7)
            for a, b in zip(one["averaged"], first["averaged"], strict=True):
                assert torch.equal(a, b)  # to the bit, or the ranks' models would part
        if "gathered" in first:
            assert first["gathered"] == (0 if sent is None else 3 * 8 * sent)
            assert first["reduced"] == 3 * 4 * (58 if sent is None else 8)


def test_the_hook_refuses_several_buckets(exchanged):
    for *_, error in exchanged[2]:
        assert "ValueError: exchange_hook needs all gradients in one bucket: give DDP a bucket_cap_mb" in error


def test_local_top_is_topk_and_leaves_zeros_out():
    weights, gradient = torch.tensor([1.0, 2, 3, 4, 0]), torch.tensor([4.0, 1, -1, 0, 9])
    assert local_top(weights, gradient, 2).tolist() == [0, 2]
    assert local_top(weights, gradient, 4).tolist() == [0, 1, 2]
    assert local_top(weights, gradient, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def hooked() -> pd.DataFrame:
    return study.with_hook(SMALL, factors=(1, 60), ranks=2, seeds=[0, 1], progress=False)


def test_a_factor_that_sends_everything_trains_like_the_dense_exchange(hooked):
    everything, dense = (hooked[hooked["factor"] == k].reset_index() for k in (60, math.inf))
    assert (everything["live"] - dense["live"]).abs().max() < 0.03
    assert (hooked.groupby("seed")["base"].nunique() == 1).all()
    assert hooked["tested"].eq(len(load("digits").test_y)).all()


def test_the_bytes_of_the_hook_are_those_of_the_formulas(hooked):
    others = 2 * 0.5 * 4 * 410  # biases, always averaged
    for factor, scheme in ((1, "local top Q, to everybody"), (math.inf, "dense all-reduce")):
        by_formula = study.cost(266_200, 2).set_index("scheme")["bytes"][scheme] + others
        assert hooked[hooked["factor"] == factor]["bytes"].tolist() == [by_formula] * 2
    sparse = hooked[hooked["factor"] == 1]
    assert sparse["share"].tolist() == pytest.approx([(4436 * 8 + others) / (266_610 * 4)] * 2)


def test_lost_is_against_the_dense_exchange_of_the_seed(hooked):
    for _, rows in hooked.groupby("seed"):
        dense = rows[np.isinf(rows["factor"])]["cut"].item()
        np.testing.assert_allclose(rows["lost"], dense - rows["cut"])


def test_the_same_seed_gives_the_same_table_and_a_model_of_ones_own_is_copied_to_the_ranks(hooked):
    data = load("digits")
    model = build("lenet300", data.shape, data.classes, data.mean, data.std, seed=1)
    before = [p.clone() for p in model.parameters()]
    again = study.with_hook(SMALL | {"model": model, "data": data}, factors=[1], seeds=[1], progress=False)
    assert again.equals(hooked[(hooked["seed"] == 1) & (hooked["factor"] != 60)].reset_index(drop=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ cost


def test_cost_by_hand_on_four_ranks():
    table = study.cost(1200, 4, compression=10, factor=2, bits=4, count_bytes=100, count_rounds=3, link=1, latency=10)
    table = table.set_index("scheme")
    expected = {
        "dense all-reduce": (1.5 * 4800, 6), "4 bits a weight": (1.5 * 600, 6),
        "QSGD, to everybody": (3 * (2.8 * 1200 + 32) / 8, 3), "1 bit, signSGD": (1.5 * 150, 6),
        "local top 2Q, to everybody": (3 * 240 * 8, 3),
        "reduce-scatter, then the active": (0.75 * (4800 + 8 * 120) + 200, 6 + 12),
        "active only, set known": (1.5 * 480, 6), "GSM under FSDP2, in addition": (200, 12),
        "GSM under DDP, in addition": (0, 0),
    }  # fmt: skip
    assert list(table.index) == list(expected)
    for scheme, (sent, messages) in expected.items():
        row = table.loc[scheme]
        assert (row["bytes"], row["messages"]) == (pytest.approx(sent), messages), scheme
        assert row["seconds"] == pytest.approx(messages * 1e-5 + sent / 1e9)
        assert row["share"] == pytest.approx(sent / 7200)


def test_counts_do_not_depend_on_the_number_of_weights():
    table = study.cost([10**5, 10**8, 10**9], [2, 1000])
    for _, rows in table[table["scheme"] == "GSM under FSDP2, in addition"].groupby("ranks"):
        assert rows["bytes"].tolist() == [2 * 8 * (16 + 4096)] * 3
    assert len(table) == 6 * 9


@pytest.mark.parametrize("weights", [5000, 2**31 + 5])
def test_counts_are_what_the_exchange_sends_in_a_usual_step(weights):
    """One rank of one, which brings 5000 positive values; the others count as N only."""
    values = np.random.default_rng(0).uniform(1, 2, 5000).astype(np.float32)
    bits, sent = torch.from_numpy(values.view(np.int32)), []

    def total(words: torch.Tensor) -> torch.Tensor:
        sent.append(words.numel() * words.element_size())
        return words

    own = digits.Own(weights, 100, weights, "here", None)
    top = digits.top_q(own, lambda: bits, lambda: None, total)
    assert top.bits == int(np.sort(values)[-100].view(np.int32))
    assert study.counts(weights) == (sum(sent), len(sent))
    assert sum(sent) <= 64 * 1024


def test_at_scale_uses_the_assumptions_as_written():
    table = study.cost(**study.AT_SCALE).set_index("scheme")
    dense = 2 * 999 / 1000 * 2 * 100e9
    assert table["bytes"]["dense all-reduce"] == pytest.approx(dense)
    assert table["seconds"]["dense all-reduce"] == pytest.approx(dense / 50e9 + 1998 * 5e-6)
    assert table["share"]["GSM under FSDP2, in addition"] < 1e-6


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: study.cost(10**10), r"weights must be from 1 to 256\^index_bytes = 4,294,967,296, got 10,000,000,000"),
        (lambda: study.cost(Fraction(1, 3)), r"weights must be from 1 to .*, got Fraction\(1, 3\)"),
        (lambda: study.cost(ranks=1), "ranks must be a whole number >= 2, got 1"),
        (lambda: study.cost(ranks=[]), "ranks must hold at least one value, got none"),
        (lambda: study.cost(link=0), "link must be a finite number > 0, got 0"),
        (lambda: study.cost(latency=-1), "latency must be a finite number >= 0, got -1"),
        (lambda: study.cost(compression=0.5), "compression must be a finite number >= 1"),
        (lambda: study.agreement([]), "looks must hold at least one look"),
        (lambda: study.agreement([], factors=[0]), r"factors must hold at least one finite number > 0, got \[0\]"),
        (lambda: study.quantised([], bits=[0]), "bits is 0; valid: an integer in 1 .. 16"),
        (lambda: study.quantised([], bits=[]), "bits must hold at least one value"),
        (lambda: study.local_gradients(SMALL, ranks=1), "ranks is 1; valid: an integer in 2 .. 64"),
        (
            lambda: study.local_gradients(SMALL | {"batch_size": 63}),
            "batch_size must be a multiple of ranks, .* 63 and",
        ),
        (lambda: study.local_gradients(SMALL, steps=[23]), "steps is 23; valid: an integer in 1 .. 22"),
        (lambda: study.local_gradients(SMALL, steps=[]), "steps must hold at least one value"),
        (lambda: study.local_gradients(SMALL | {"lr": -1}), "lr must be a number from 0 to 100, got -1"),
        (lambda: study.with_hook(SMALL, factors=[math.inf]), "factors must hold at least one finite number > 0"),
        (lambda: study.with_hook(SMALL, seeds=[]), "seeds must hold at least one value"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batch_norm_has_the_statistics_of_the_first_rank():
    """Each rank's own are of its last rows, and so are its accuracies; and each run begins with the model as given."""
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    data = Dataset(x[:80], torch.arange(80) % 3, x[80:], torch.arange(40) % 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6, momentum=1.0), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    small = {"model": model, "data": data, "batch_size": 4, "pretrain": 1, "epochs": 1, "compression": 4.0}
    table = study.with_hook(small, factors=[2], seeds=[0], progress=False)
    assert sorted(table["factor"]) == [2, math.inf]
    assert table["live"].between(0, 1).all() and table["base"].nunique() == 1
