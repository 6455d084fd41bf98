"""Views of the first layer: against sorts of |w| and steps made by hand; a film's views are spread evenly."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gsm_lab as gl
from gsm_lab.studies import network
from gsm_lab.studies.view import FEATURES, INPUTS, PIXELS, POSITIONS
from tests.runs import differs, everything, mine, tiny


def pictures(channels: int = 1, h: int = 6, w: int = 5, n: int = 40) -> gl.Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.random((n, channels, h, w), np.float32), np.arange(n) % 4
    return gl.Dataset(x, y, x[:8], y[:8], name="pictures")


def run_of(model: nn.Module, data: gl.Dataset, **knobs: object) -> gl.Run:
    return gl.Run(model, data, **{"batch_size": 8, "pretrain": 0, "epochs": 4, "compression": 5.0} | knobs)


def kept_by_sort(run: gl.Run) -> list[np.ndarray]:
    """The Q largest |w| of all the tensors by a stable sort, a mask a tensor."""
    flat = np.concatenate([np.abs(p.detach().numpy().astype(np.float32)).reshape(-1) for p in run.tensors])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[: run.nonzeros]] = True
    mask &= flat > 0
    sizes = np.cumsum([p.numel() for p in run.tensors])[:-1]
    return [part.reshape(p.shape) for part, p in zip(np.split(mask, sizes), run.tensors, strict=True)]


class Attention(nn.Module):
    """A transformer's layer over the rows of a picture, with a token of its own."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.layer = nn.TransformerEncoderLayer(width, 1, 16, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x.squeeze(1)], 1)
        return self.head(self.layer(x)[:, 0])


class Backwards(nn.Module):
    """Its layers are registered in another order than they are called, and the first sees the pixels turned around."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.last = nn.Linear(30, 4)
        self.first = nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(torch.relu(self.first(x.flip(1) if self.turned else 2 * x - 1)))


def mlp(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 4))


def conv(channels: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4), *more)


MODELS = {
    "pixels": (lambda: mlp(30), pictures(), "1", PIXELS, (6, 5), 12, 30),
    "channels of a pixel": (lambda: mlp(90), pictures(3), "1", PIXELS, (6, 5), 12, 30),
    "features": (lambda: mlp(8), mine(), "1", FEATURES, (1, 8), 12, 8),
    "kernels": (lambda: conv(2), pictures(2), "0", POSITIONS, (3, 3), 6, 9),
    "in the order of the calls": (lambda: Backwards(False), pictures(), "first", PIXELS, (6, 5), 30, 30),
    "pixels in other places": (lambda: Backwards(True), pictures(), "first", INPUTS, (1, 30), 30, 30),
    "attention": (Attention, pictures(), "layer.self_attn.in_proj_weight", INPUTS, (1, 5), 15, 5),
}


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_a_sort(name: str) -> None:
    make, data, layer, kind, shape, units, count = MODELS[name]
    torch.manual_seed(0)
    run = run_of(make(), data)
    run.step(2)
    view = network.look(run)
    found = (view.layer, view.kind, view.inputs.shape, view.of_units, view.count)
    assert found == (layer, kind, shape, units, count)
    number = [*run.history.layers].index(f"{layer}.weight" if f"{layer}.weight" in run.history.layers else layer)
    w, kept = run.tensors[number].detach().numpy(), kept_by_sort(run)[number]
    each = kept.reshape(units, -1, *shape) if kind == PIXELS else kept.reshape(units, 1, *shape)
    assert np.array_equal(view.inputs, each.sum(axis=(0, 1)))
    assert view.reached == np.count_nonzero(each.any(axis=(0, 1)))
    assert (view.layer_kept, view.weights) == (kept.sum(), kept.size)
    assert view.alive == np.count_nonzero(kept.reshape(units, -1).any(axis=1))
    assert sorted(view.shown) == list(range(units))
    assert np.array_equal(view.unit_kept, kept.reshape(units, -1).sum(axis=1)[view.shown])
    assert (np.diff(view.unit_kept) <= 0).all()
    assert np.array_equal(view.kept, each.any(axis=1)[view.shown])
    laid = w.reshape(units, -1, *shape)[view.shown]
    heaviest = np.take_along_axis(laid, np.abs(laid).argmax(axis=1)[:, None], axis=1)[:, 0]
    assert np.array_equal(view.units, heaviest)
    active = run.opt.active_mask().numpy()[sum(p.numel() for p in run.tensors[:number]) :][: w.size]
    assert np.array_equal(view.active, active.reshape(units, -1, *shape)[view.shown].any(axis=1))


def test_what_came_back_is_told_from_two_steps_made_by_hand() -> None:
    run = run_of(mlp(30), pictures())
    assert network.look(run).returned is None
    rng = np.random.default_rng(1)
    masks = rng.random((3, run.opt.weights)) < 0.3
    weights = [p.detach().numpy() for p in run.tensors]
    for step, mask in enumerate(masks[:2], 1):
        run.history.record(step, step / 5, 1.0, 0.1, 0.1, mask, weights)
        assert (network.look(run).returned is None) == (step == 1)
    view = network.look(run)
    back = (masks[1] & ~masks[0])[:360].reshape(12, 6, 5)
    assert view.returned == back.sum() > 0
    assert np.array_equal(view.reactivated, back[view.shown])
    run.history.record(3, 0.6, 1.0, 0.1, 0.1, masks[2], weights)
    assert network.look(run).returned == (masks[2] & ~masks[1])[:360].sum()


def test_the_number_is_that_of_the_history() -> None:
    run = run_of(mlp(30), pictures())
    run.step(6)
    assert network.look(run).returned == run.history.frame()["reactivated/1.weight"].iloc[-1]


@pytest.mark.parametrize("pretrain", [0, 1])
def test_neither_views_nor_films_change_a_run(pretrain: int) -> None:
    runs = tiny(pretrain=pretrain), tiny(pretrain=pretrain)
    film = network.Film(runs[1], 4)
    for _ in range(6):
        for run in runs:
            run.step(1)
        modes = [m.training for m in runs[1].model.modules()]
        outside = torch.get_rng_state()
        network.look(runs[1])
        assert torch.equal(outside, torch.get_rng_state())
        assert modes == [m.training for m in runs[1].model.modules()]
        assert not any(m._forward_pre_hooks for m in runs[1].model.modules())
    assert len(film.views) <= 4
    assert differs(everything(runs[0]), everything(runs[1])) == []


def test_the_states_of_a_run() -> None:
    run = tiny(pretrain=2)
    view = network.look(run)
    assert (view.dense, view.step, view.returned) == (True, 0, None)
    assert not view.active.any()
    run.step(3)
    assert not network.look(run).dense
    run.cut()
    view = network.look(run)
    assert np.array_equal(view.kept, view.units != 0)
    run.set(compression=1.0)
    run.step(1)
    assert network.look(run).active.all()
    torch.nn.init.zeros_(run.tensors[0])
    view = network.look(run)
    assert (view.reached, view.alive, view.layer_kept) == (0, 0, 0)
    run.reset(compression=1.0)
    view = network.look(run)
    assert (view.layer_kept, view.reached) == (view.weights, view.count)


@pytest.mark.parametrize("name", ["dns", "magnitude"])
def test_rivals_are_seen_too(name: str) -> None:
    run = run_of(mlp(30), pictures(), method=gl.methods.kind(name)())
    run.step(3)
    view = network.look(run)
    assert view.layer_kept == kept_by_sort(run)[0].sum()


def test_a_layer_that_is_included_or_left_out() -> None:
    torch.manual_seed(0)
    run = run_of(Attention(), pictures(), include="token")
    assert (network.look(run).layer, network.look(run).kind) == ("layer.self_attn.in_proj_weight", INPUTS)
    run = run_of(mlp(30), pictures(), exclude="1.weight")
    view = network.look(run)
    assert (view.layer, view.kind, view.inputs.shape) == ("3", INPUTS, (1, 12))


def test_many_inputs_are_folded_and_large_images_share_places() -> None:
    run = run_of(nn.Sequential(nn.Flatten(), nn.Linear(30, 70), nn.ReLU(), nn.Linear(70, 4)), pictures(), exclude="1.*")
    view = network.look(run)
    assert view.inputs.shape == (8, 9)
    assert (view.inputs.reshape(-1)[70:] == -1).all()
    assert view.inputs.reshape(-1)[:70].tolist() == kept_by_sort(run)[0].sum(axis=0).tolist()
    assert np.array_equal(view.units.reshape(4, -1)[:, :70], run.tensors[0].detach().numpy()[view.shown])
    large = run_of(nn.Sequential(nn.Flatten(), nn.Linear(200 * 150, 4)), pictures(1, 200, 150, 8), compression=50)
    view = network.look(large)
    kept = kept_by_sort(large)[0].reshape(4, 200, 150)
    assert view.inputs.shape == (100, 75)
    assert np.array_equal(view.inputs, kept.sum(axis=0).reshape(100, 2, 75, 2).sum(axis=(1, 3)))
    assert (view.reached, view.count) == (np.count_nonzero(kept.any(axis=0)), 30_000)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_units_keep_their_places(data: st.DataObject) -> None:
    """The best are shown, and those shown before are where they were."""
    n = data.draw(st.integers(1, 12))
    most = data.draw(st.integers(1, n))
    kept, size = (np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))) for _ in range(2))
    places = np.array(data.draw(st.permutations(range(n)))[:most])
    chosen = network._chosen(kept, size, most, places)
    rank = sorted(range(n), key=lambda i: (-kept[i], -size[i], i))[:most]
    assert sorted(chosen) == sorted(rank)
    assert all(chosen[i] == unit for i, unit in enumerate(places) if unit in rank)


def test_a_view_is_like_the_one_before() -> None:
    run = run_of(mlp(30), pictures(), lr=1.0)
    first = network.look(run, units=4)
    run.step(8)
    view = network.look(run, units=4, like=first)
    assert sorted(view.shown) == sorted(network.look(run, units=4).shown)
    both = np.isin(first.shown, view.shown)
    assert np.array_equal(view.shown[both], first.shown[both])


# -- films -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 3, 8])
def test_a_film_is_spread_evenly_from_the_first_moment_to_the_last(frames: int) -> None:
    run = tiny(pretrain=1, epochs=40)
    film = network.Film(run, frames)
    with pytest.raises(ValueError, match="has not closed its gate"):
        _ = film.views
    run.pretrain()
    dense = copy.deepcopy([p.detach().numpy() for p in run.tensors])
    for done in range(26):
        steps = [view.step for view in film.views]
        assert (steps[0], steps[-1]) == (0, done)
        assert len(steps) <= frames
        assert steps[:-1] == list(range(0, done, film.every))[: len(steps) - 1] or done == 0
        assert len(steps) >= min(done + 1, (frames + 1) // 2)
        run.step(1)
    assert np.array_equal(film.views[0].units, dense[0].reshape(-1, 1, 8)[film.views[0].shown])
    assert np.array_equal(film.views[-1].units, network.look(run, like=film.views[-1]).units)


def test_a_film_begins_where_it_is_attached_and_ends_with_a_reset() -> None:
    run = tiny()
    run.step(3)
    film = network.Film(run)
    run.step(2)
    assert [view.step for view in film.views] == [3, 4, 5]
    run.reset()
    with pytest.raises(ValueError, match="reset after Film"):
        _ = film.views


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"run": None}, TypeError, "run must be a gsm_lab.Run"),
        ({"units": 0}, ValueError, "units must be a whole number >= 1, got 0"),
        ({"like": 3}, TypeError, "like must be a View or None, got int"),
    ],
)
def test_what_is_no_argument_is_named(arguments: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        network.look(**{"run": tiny()} | arguments)
    run = tiny()
    with pytest.raises(ValueError, match="frames must be a whole number >= 2, got 1"):
        network.Film(run, 1)
    assert run.recorders == []


def test_weights_that_are_not_finite_are_named() -> None:
    run = tiny()
    with torch.no_grad():
        run.tensors[0][0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"weight 'body\.0\.weight' holds NaN"):
        network.look(run)


def test_spread_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny()
    monkeypatch.setattr(network, "is_distributed", lambda p: True)
    with pytest.raises(ValueError, match="spread over ranks"):
        network.look(run)
