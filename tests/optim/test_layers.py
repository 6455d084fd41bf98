"""Which tensors are kernels, in layers that PyTorch knows and in those that it does not."""

import pytest
import torch
from torch import nn

from gsm_lab.optim import prunable


class Own(nn.Module):
    """A layer of one's own, with parameters of these names, or in a list, beside those that every test has."""

    def __init__(self, *names: str, shape: tuple[int, ...] = (3, 4)) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


class FrobeniusNorm(Own):
    pass


class TokenEmbedding(Own):
    pass


class NormalisedLinear(Own):
    pass


@pytest.mark.parametrize("name", ["weight", "kernel", "W", "w1", "W_q", "base_weight", "weight2", "in_proj", "lora_A"])
def test_a_layer_of_ones_own_has_a_kernel_where_the_name_says_so(name: str) -> None:
    assert list(prunable(nn.Sequential(Own(name)))) == [f"0.{name}"]
    assert list(prunable(Own(name, shape=(2, 3, 4)))) == [name]
    assert list(prunable(NormalisedLinear(name))) == [name]
    assert not prunable(Own(name, shape=(4, 1, 1))) and not prunable(Own(name, shape=(1, 1, 4)))  # a scale, a token
    assert not prunable(FrobeniusNorm(name)) and not prunable(TokenEmbedding(name))


@pytest.mark.parametrize(
    "name",
    [
        "gamma",
        "cls_token",
        "pos_embed",
        "position_weight",
        "rel_pos_weight",
        "relative_position_bias_table",
        "A_log",
        "weight_scale",
        "gain",
        "attention_biases",
        "mixture",
        "world",
        "weightless_norm",
        "token_weights",
    ],
)
def test_bare_parameters_are_no_kernels(name: str) -> None:
    assert not prunable(Own(name))
    assert list(prunable(Own(name), include=name)) == [name]


def test_a_list_of_kernels_is_called_as_the_list_is() -> None:
    model = nn.Module()
    model.weights = nn.ParameterList([torch.ones(2, 3), torch.ones(3)])
    model.tokens = nn.ParameterList([torch.ones(2, 3)])
    model.by_name = nn.ParameterDict({"weight": torch.ones(2, 3), "bias": torch.ones(3, 2)})
    assert list(prunable(model)) == ["weights.0", "by_name.weight"]
    model.positions = TokenEmbedding()
    model.positions.weights = nn.ParameterList([torch.ones(2, 3)])
    assert list(prunable(model)) == ["weights.0", "by_name.weight"]


def test_classes_derived_from_layers_and_scripted_ones() -> None:
    class StandardisedConv(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(2, 3, 3)
            self.gain = nn.Parameter(torch.ones(3, 1, 1, 1))

    class Norm1x1(nn.Linear):  # whatever it is called
        pass

    assert list(prunable(nn.Sequential(StandardisedConv(), Norm1x1(3, 1)))) == ["0.weight", "1.weight"]
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm([2, 4]), nn.Embedding(3, 4), nn.Conv1d(2, 3, 3))
    assert list(prunable(torch.jit.script(plain))) == list(prunable(plain)) == ["0.weight", "3.weight"]


def test_shapes_do_not_matter_where_pytorch_knows_the_layer() -> None:
    model = nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 1), nn.Conv2d(1, 7, 1), nn.Conv2d(4, 4, 1, groups=4))
    assert list(prunable(model)) == [f"{i}.weight" for i in range(4)]


@pytest.mark.parametrize("first", ["norm", "linear"])
def test_a_kernel_that_a_norm_has_too_is_none(first: str) -> None:
    norm, linear = nn.LayerNorm([3, 4]), nn.Linear(4, 3)
    norm.weight = linear.weight
    assert not prunable(nn.Sequential(*((norm, linear) if first == "norm" else (linear, norm))))
