"""The networks, held against published counts, layers written out by hand, and PyTorch's own initial weights."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gsm_lab import models
from gsm_lab.models import build, lenet5, lenet300, prunable, resnet56

SHAPES = {"lenet300": (1, 28, 28), "lenet5": (1, 28, 28), "resnet56": (3, 32, 32)}
every_model = pytest.mark.parametrize("name", SHAPES)


def made(name: str, seed: int = 0) -> nn.Module:
    return build(name, SHAPES[name], 10, 0.2, 0.4, seed)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    # weights: the paper, Tables 1 and 2 ("267K", "431K", "852K" with biases and norms); He et al. 2016, Table 6: 0.85M
    ("name", "weights", "parameters"),
    [("lenet300", 266_200, 266_610), ("lenet5", 430_500, 431_080), ("resnet56", 848_944, 853_018)],
)
def test_parameter_counts(name: str, weights: int, parameters: int) -> None:
    model = made(name)
    assert sum(p.numel() for p in prunable(model).values()) == weights
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_layers_of_the_lenets() -> None:
    assert [p.numel() for p in prunable(lenet300()).values()] == [784 * 300, 300 * 100, 100 * 10]
    assert [p.numel() for p in prunable(lenet5()).values()] == [20 * 25, 50 * 20 * 25, 800 * 500, 500 * 10]


def test_resnet56_has_56_layers_in_three_stages() -> None:
    tensors = prunable(resnet56()).values()
    assert len(tensors) == 56
    outputs = [len(t) for t in tensors]
    assert outputs == [16] * 19 + [32] * 18 + [64] * 18 + [10]


def test_biases_and_norms_are_not_prunable() -> None:
    for name in SHAPES:
        left = set(weights(made(name))) - set(prunable(made(name)))
        assert left and all("bias" in one or "bn" in one for one in left)


# ------------------------------------------------------------------------------------------------ what they compute


def test_lenet300_by_hand() -> None:
    model, x = lenet300(mean=0.1, std=0.5), torch.rand(5, 1, 28, 28)
    w = weights(model)
    h = (x.reshape(5, 784) - 0.1) / 0.5
    h = (h @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    h = (h @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ w["fc3.weight"].T + w["fc3.bias"])


def test_lenet5_by_hand() -> None:
    model, x = lenet5(mean=0.1, std=0.5), torch.rand(2, 1, 28, 28)
    w = weights(model)
    h = (x - 0.1) / 0.5
    for conv in ("conv1", "conv2"):  # a convolution is a product with unfolded patches
        kernel = w[f"{conv}.weight"]
        h = kernel.flatten(1) @ F.unfold(h, 5) + w[f"{conv}.bias"][:, None]
        side = round(h.shape[2] ** 0.5)
        h = h.reshape(2, len(kernel), side // 2, 2, side // 2, 2).amax((3, 5))  # 2x2 pools
    h = (h.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    torch.testing.assert_close(model(x), h @ w["fc2.weight"].T + w["fc2.bias"], rtol=1e-4, atol=1e-5)


def test_a_block_with_dead_convolutions_is_its_shortcut() -> None:
    model, x = resnet56().eval(), torch.rand(2, 16, 8, 8)
    for block in (model.blocks[0], model.blocks[9]):
        nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(model.blocks[0](x), x)
    widened = model.blocks[9](x)  # He et al. 2016, option A: every second pixel, new channels zero
    torch.testing.assert_close(widened[:, :16], x[:, :, ::2, ::2])
    assert widened.shape == (2, 32, 4, 4) and not widened[:, 16:].any()


@every_model
def test_inputs_are_standardised_by_buffers(name: str) -> None:
    model = made(name).eval()
    assert dict(model.named_buffers())["mean"] == torch.tensor(0.2)
    plain = build(name, SHAPES[name], 10, 0.0, 1.0, 0).eval()
    x = torch.rand(3, *SHAPES[name])
    torch.testing.assert_close(model(x), plain((x - 0.2) / 0.4))
    plain.load_state_dict(model.state_dict())  # the buffers travel with the weights
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("lenet300", (1, 28, 28), 10), ("lenet300", (7,), 3), ("lenet300", (3, 5, 2), 2), ("lenet5", (1, 28, 28), 10),
        ("lenet5", (3, 28, 28), 4), ("resnet56", (3, 32, 32), 10), ("resnet56", (1, 28, 28), 5),
    ],
)  # fmt: skip
def test_shapes(name: str, shape: tuple[int, ...], classes: int) -> None:
    logits = build(name, shape, classes, 0.0, 1.0, 0)(torch.rand(2, *shape))
    assert logits.shape == (2, classes) and logits.isfinite().all()


# ------------------------------------------------------------------------------------------------ seeds


@every_model
def test_a_seed_always_gives_the_same_weights(name: str) -> None:
    assert same(made(name, seed=3), made(name, seed=3))
    assert not same(made(name, seed=3), made(name, seed=4))


@every_model
def test_the_programs_random_numbers_are_left_alone(name: str) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    made(name, seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_initial_weights_are_pytorchs_own() -> None:
    torch.manual_seed(8)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise((784, 300, 100, 10))]
    expected = [p for layer in layers for p in (layer.weight, layer.bias)]
    assert all(torch.equal(a, b) for a, b in zip(made("lenet300", seed=8).parameters(), expected, strict=True))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["LeNet", "", "lenet_5", None])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"model must be one of lenet300, lenet5, resnet56 or an nn.Module, got {name!r}"
    ):
        build(name, (1, 28, 28), 10, 0.0, 1.0, 0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (28, 28), (784,), (1, 28, 27)])
def test_lenet5_refuses_other_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"lenet5 takes images of shape \(channels, 28, 28\), got samples of shape"
    ) as e:
        models.lenet5(shape)
    assert str(shape) in str(e.value)


@pytest.mark.parametrize("shape", [(784,), (28, 28)])
def test_resnet56_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"resnet56 takes images \(channels, height, width\), got samples of shape"):
        models.resnet56(shape)


@every_model
def test_gradients_of_single_samples_can_be_had_at_once(name: str) -> None:
    """By vmap; what it cannot take is done one by one, slowly (see `gsm_lab.training.derivatives`)."""
    model = made(name).eval()
    x, y = torch.rand(3, *SHAPES[name]), torch.tensor([1, 7, 2])

    def loss(weights: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    own = {key: p.detach() for key, p in model.named_parameters()}
    together = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(own, x, y)
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(together[key][i], p.grad, rtol=1e-3, atol=1e-5)
