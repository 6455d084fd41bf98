"""The digits against scikit-learn's own functions, resized as torch does it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gsm_lab.data import digits, load


def test_digits_is_sklearns_resized_like_torch_and_centred() -> None:
    data, bunch = load("digits"), load_digits()
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    assert data.train_x.shape == (1437, 1, 28, 28) and data.test_x.shape == (360, 1, 28, 28)
    assert x.min() == 0 and x.max() == 1 and (data.name, data.classes) == ("digits", 10)
    border = x.clone()
    border[:, :, 4:24, 4:24] = 0
    assert not border.any()
    original = torch.from_numpy(bunch.images).float()[:, None] / 16
    resized = torch.nn.functional.interpolate(original, size=20, mode="bilinear", align_corners=False)

    def keys(images: torch.Tensor, labels: torch.Tensor | np.ndarray) -> list[tuple[int, ...]]:
        rows = torch.round(images.reshape(len(images), -1).double() * 1600).long()  # all values are multiples of 1/1600
        return sorted((int(label), *row) for label, row in zip(labels, rows.tolist(), strict=True))

    assert keys(x[:, :, 4:24, 4:24], y) == keys(resized, bunch.target)  # each original once, with its label


def test_digits_split_is_stratified_and_fixed() -> None:
    data = load("digits")
    whole = np.bincount(load_digits().target)
    train, test = np.bincount(data.train_y), np.bincount(data.test_y)
    np.testing.assert_array_equal(train + test, whole)
    assert (np.abs(test - 360 * whole / 1797) < 1).all()
    assert data.digest == "6c34710d567a5e2e"  # on every CPU: saved runs are resumed by it
    rows, target = np.arange(1797), load_digits().target
    for ours, sklearns in zip(
        digits._split(target), train_test_split(rows, test_size=360, stratify=target, random_state=0), strict=True
    ):
        np.testing.assert_array_equal(ours, sklearns)


def test_digits_are_asked_for_where_scikit_learn_keeps_them_elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(digits, "FILE", "datasets/data/moved.csv.gz")
    assert digits.digits.__wrapped__().digest == load("digits").digest


def test_digits_need_no_scikit_learn_but_its_file(monkeypatch) -> None:
    code = (
        "import sys, gsm_lab.data as d; d.load('digits'); print([m for m in ('sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'sklearn'"):
        digits.digits.__wrapped__()
