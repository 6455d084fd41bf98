"""What `include=` and `exclude=` take, and what they say to what names nothing."""

import copy

import pytest
import torch
from torch import nn

from gsm_lab.optim import cut, keep_masks, param_groups, prunable

pytestmark = pytest.mark.filterwarnings("ignore:the cut left no weight")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
    model.embed = nn.Embedding(5, 6)
    model.head = nn.Linear(6, 3)
    return model


NET = ["body.0.weight", "body.2.weight", "head.weight"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (None, NET),
        ([], NET),
        ("head", NET[:2]),
        ("head.weight", NET[:2]),
        ("h*", NET[:2]),
        ("*.2.*", [NET[0], NET[2]]),
        ("body.?", NET[2:]),
        ("body", NET[2:]),
        (["body.0", "head"], [NET[1]]),
        (("embed", "head.bias"), NET),  # did not compete anyway
        (lambda model: model.body, NET[2:]),
        (lambda model: [model.head, "body.0"], [NET[1]]),
        (lambda model: model.head.weight, NET[:2]),
        (lambda model: (module for module in (model.head, model.body[2])), NET[:1]),
    ],
)
def test_what_is_excluded_is_left_alone(exclude: object, left: list[str]) -> None:
    def picks(model: nn.Module) -> object:
        return exclude(model) if callable(exclude) else exclude

    model = net()
    before = copy.deepcopy(model.state_dict())
    assert list(prunable(model, exclude=picks(model))) == left
    groups = param_groups(model, exclude=picks(model))
    assert groups[0]["names"] == left
    assert {name for group in groups for name in group["names"]} == set(before)
    assert list(keep_masks(model, nonzeros=3, exclude=picks(model))) == left
    assert cut(model, nonzeros=3, exclude=picks(model)) == 3
    assert sum(int(model.get_parameter(name).count_nonzero()) for name in left) == 3
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in before if name not in left)


def test_what_is_included_comes_in_its_place_and_exclude_has_the_last_word() -> None:
    model = net()
    all_of_them = [*NET[:2], "embed.weight", NET[2]]
    for include in ("embed", "embed.weight", "e*", model.embed, model.embed.weight, "*", [model]):
        assert list(prunable(model, include=include)) == all_of_them
        assert list(prunable(model, include, "embed*")) == NET
    model.body.requires_grad_(False)
    assert list(prunable(model, include="body.2")) == NET[1:]
    assert cut(model, nonzeros=2, include="embed", exclude=["head"]) == 2 == int(model.embed.weight.count_nonzero())


def test_a_tied_tensor_answers_to_all_of_its_names() -> None:
    model = net()
    model.again = nn.Linear(6, 3)
    model.again.weight = model.head.weight
    for exclude in ("head", "again", "again.weight", model.again, "*ain*"):
        assert list(prunable(model, exclude=exclude)) == NET[:2]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("picks", "error", "said"),
    [
        ("haed", ValueError, "names 'haed', and model Sequential has no such tensors; it has 'head'"),
        (["head", "body.9.*"], ValueError, r"names 'body\.9\.\*', and .* it has 'body"),
        (nn.Linear(2, 2), ValueError, "holds a Linear that is no part of model Sequential"),
        (nn.Parameter(torch.ones(2, 7)), ValueError, r"holds a parameter of shape \(2, 7\) that is none of model Seq"),
        (3, TypeError, "must be a name, a glob, a module or a list of these, got 3"),
        ([None], TypeError, "must be a name, a glob, a module or a list of these, got None"),
        ("body.1", ValueError, "names 'body.1', and"),
    ],
)
def test_picks_that_pick_nothing(argument: str, picks: object, error: type[Exception], said: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    for call in (prunable, param_groups, lambda m, **k: cut(m, 2, **k), lambda m, **k: keep_masks(m, 2, **k)):
        with pytest.raises(error, match=rf"^{argument} {said}"):
            call(model, **{argument: picks})
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_what_cannot_compete_cannot_be_included_and_something_must_be_left() -> None:
    with pytest.raises(
        ValueError, match=r"^include must name tensors of 2 dimensions or more, and 'head.bias' names none"
    ):
        param_groups(net(), include="head.bias")
    with pytest.raises(ValueError, match=r"^exclude names a ReLU, which has no parameters"):
        model = net()
        param_groups(model, exclude=model.body[1])
    for call in (param_groups, lambda m, **k: cut(m, 2, **k)):
        with pytest.raises(ValueError, match=r"^model Sequential has no prunable weights: exclude leaves none"):
            call(net(), exclude="*")
