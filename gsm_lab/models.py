"""The networks of the paper's small experiments, LeNet-300-100, LeNet-5 and ResNet-56, as plain modules.

Each takes raw inputs in 0..1 and standardises them itself with its two buffers `mean` and `std`, so that a saved model
is all one needs to classify an image. Any other `nn.Module` works everywhere these do.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.checks import MOST, integer, kind, number, shown
from gsm_lab.optim.groups import prunable
from gsm_lab.turns import turn

__all__ = ["MODELS", "LeNet5", "LeNet300", "ResNet56", "build", "copied", "lenet5", "lenet300", "prunable", "resnet56"]


class _Standardised(nn.Module):
    """A module whose inputs are shifted and scaled by two scalar buffers, mean and standard deviation of the data."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))


class LeNet300(_Standardised):
    """LeNet-300-100 (LeCun et al. 1998): three fully-connected layers, 266,200 weights on 28x28 inputs, 10 classes."""

    def __init__(self, inputs: int, classes: int, mean: float, std: float) -> None:
        super().__init__(mean, std)
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of inputs [n, ...] that hold `inputs` numbers each."""
        x = ((x - self.mean) / self.std).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class LeNet5(_Standardised):
    """LeNet-5 in the Caffe form the pruning papers use (20-50-500), 430,500 weights on one channel, 10 classes."""

    def __init__(self, channels: int, classes: int, mean: float, std: float) -> None:
        super().__init__(mean, std)
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, 28, 28]."""
        x = self.conv1((x - self.mean) / self.std)
        # channels last, as vmap can have it: on a CPU, pooling and the second convolution are a third faster so
        x = F.max_pool2d(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class _Block(nn.Module):
    """Two 3x3 convolutions around an identity shortcut, which pads channels with zeros where a stage widens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.extra = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet56(_Standardised):
    """ResNet-56 for small images (He et al. 2016, section 4.2): three stages of nine blocks, 16-32-64 channels."""

    def __init__(self, channels: int, classes: int, mean: float, std: float) -> None:
        super().__init__(mean, std)
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16] * 10 + [32] * 9 + [64] * 9
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in itertools.pairwise(widths)))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, height, width]."""
        x = self.blocks(F.relu(self.bn(self.conv((x - self.mean) / self.std))))
        return self.fc(x.mean(dim=(2, 3)))


def _sizes(shape: Any, classes: Any, mean: Any, std: Any) -> tuple[tuple[int, ...], int, float, float]:
    """The four arguments of a network, checked. Raises TypeError or ValueError naming the one that is wrong."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape must be a tuple of whole numbers, that of one sample, got {shown(shape)}")
    sizes = tuple(integer("shape", size, 1, MOST) for size in shape)
    integer("shape", math.prod(sizes), 1, MOST)
    classes, mean = integer("classes", classes, 1, MOST), number("mean", mean, -1e38, 1e38)
    return sizes, classes, mean, number("std", std, 1e-38, 1e38)


def lenet300(
    shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, mean: float = 0.1307, std: float = 0.3081
) -> LeNet300:
    """LeNet-300-100 for samples of any `shape`; `mean` and `std` of the training data (MNIST's unless given)."""
    shape, classes, mean, std = _sizes(shape, classes, mean, std)
    return LeNet300(math.prod(shape), classes, mean, std)


def lenet5(
    shape: tuple[int, ...] = (1, 28, 28), classes: int = 10, mean: float = 0.1307, std: float = 0.3081
) -> LeNet5:
    """LeNet-5 (20-50-500) for images [channels, 28, 28]. Raises ValueError for another size."""
    shape, classes, mean, std = _sizes(shape, classes, mean, std)
    if len(shape) != 3 or tuple(shape[1:]) != (28, 28):
        raise ValueError(f"lenet5 takes images of shape (channels, 28, 28), got samples of shape {tuple(shape)}")
    return LeNet5(shape[0], classes, mean, std)


def resnet56(
    shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, mean: float = 0.4734, std: float = 0.2516
) -> ResNet56:
    """ResNet-56 for images [channels, height, width]; the defaults are CIFAR-10's. Raises ValueError for others."""
    shape, classes, mean, std = _sizes(shape, classes, mean, std)
    if len(shape) != 3:
        raise ValueError(f"resnet56 takes images (channels, height, width), got samples of shape {tuple(shape)}")
    return ResNet56(shape[0], classes, mean, std)


MODELS: dict[str, Callable[..., nn.Module]] = {"lenet300": lenet300, "lenet5": lenet5, "resnet56": resnet56}


def build(name: str, shape: tuple[int, ...], classes: int, mean: float, std: float, seed: int) -> nn.Module:
    """The named model for samples of `shape`, with PyTorch's default initial weights drawn from `seed`.

    The global random state is left as it was. Raises ValueError for an unknown name (the valid ones are listed).
    """
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)} or an nn.Module, got {shown(name)}")
    seed = integer("seed", seed, 0, 2**63 - 1)
    with turn, torch.random.fork_rng(devices=[]):  # no run that is trained in another thread draws meanwhile
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every accelerator, too
        return MODELS[name](shape, classes, mean, std)


def computed(*owners: object) -> dict[int, Any]:
    """A memo for `copy.deepcopy` with copies of the tensors that modules have computed and keep, in lists as well."""
    memo: dict[int, Any] = {}
    modules = [module for owner in owners if isinstance(owner, nn.Module) for module in owner.modules()]
    kept = [value for module in modules for value in vars(module).values()]
    seen = set()
    while kept:
        value = kept.pop()
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            kept += value.values() if isinstance(value, dict) else value
    return memo


def copied(model: nn.Module, what: object = None) -> tuple[nn.Module, object]:
    """A copy of a module, and of `what` belongs to it (a loss): what they share is shared by the copies.

    Tensors that a module has computed and keeps (its last activations; the `weight` of `torch.nn.utils.weight_norm` or
    of a pruning mask), which `copy.deepcopy` refuses, are copied as they are; forward or a hook computes them again.

    Raises ValueError for a module that cannot be copied.
    """
    memo = computed(kind("model", model, nn.Module, "an nn.Module"), what)
    try:
        return copy.deepcopy(model, memo), copy.deepcopy(what, memo)
    except Exception as error:
        raise ValueError(
            f"model {type(model).__name__} must be one that copy.deepcopy can copy, and it cannot "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from error
