"""Settings that work, by data and model: what a run takes that is not told otherwise."""

from __future__ import annotations

from typing import Any

# Where they differ from the knobs' defaults, which are for LeNet-300-100 on digits.
RECIPES: dict[tuple[str, str], dict[str, Any]] = {("digits", "lenet5"): {"lr": 0.03, "pretrain_lr": 0.02, "epochs": 60}}
for _data in ("mnist", "fashion_mnist"):
    RECIPES[_data, "lenet300"] = {
        "batch_size": 256, "pretrain": 12, "pretrain_lr": 0.1, "lr": 0.2, "weight_decay": 7e-4, "epochs": 150,
        "evaluate_every": 234,
    }  # fmt: skip
    RECIPES[_data, "lenet5"] = {
        "batch_size": 128, "pretrain": 6, "pretrain_lr": 0.05, "lr": 0.1, "weight_decay": 2e-3, "compression": 125.0,
        "epochs": 12, "evaluate_every": 468,
    }  # fmt: skip
# Where numbers are to be predicted, of about unit size: squared errors have larger gradients than cross entropy. With a
# tenth of the learning rate, and more momentum, passive weights vanish nearly as soon (with 0.99 they would swing).
REGRESSION: dict[str, Any] = {"lr": 0.01, "pretrain_lr": 0.005, "momentum": 0.985}
# An option beside the paper's method, for LeNet-300-100 on MNIST: `Run(..., **SMOOTHED)`. The cut costs nothing then,
# and hardly any weight comes back: it is close to gradual pruning.
SMOOTHED: dict[str, Any] = {
    "smoothing": 0.99, "ramp": 0.5, "freeze": 0.6, "lr": 0.3, "weight_decay": 1e-3, "epochs": 30,
}  # fmt: skip


def recipe_of(data: str, model: str) -> tuple[str, str]:
    """Under which key settings for this data and model are found, if there are any."""
    # a part held out of MNIST is still MNIST, and a LeNet300 of one's own is a "lenet300" too
    return data.removesuffix("-validation"), model.lower()
