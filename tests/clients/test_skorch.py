"""skorch: scikit-learn's interface, with GSM as the net's optimizer."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR

import gsm_lab as gl
from tests.clients import plain

skorch = pytest.importorskip("skorch")
callbacks = pytest.importorskip("skorch.callbacks")


class Module(nn.Module):
    """The plain network, built when skorch wants it."""

    def __init__(self):
        super().__init__()
        self.network = plain.network()

    def forward(self, x):
        return self.network(x)


class Watch(callbacks.Callback):
    """Looks at the optimizer's steps from the beginning of the training."""

    def on_train_begin(self, net, **_):
        self.seen_ = plain.Watched(net.optimizer_)


def net(**more):
    """A classifier with what a user would write."""
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": gl.GSM,
        "lr": 0.1,
        "optimizer__momentum": 0.9,
        "optimizer__weight_decay": 1e-3,
        "optimizer__compression": plain.COMPRESSION,
        "batch_size": plain.BATCH,
        "max_epochs": 3,
        "train_split": None,
        "verbose": 0,
        "callbacks": [("watch", Watch()), *more.pop("callbacks", [])],
        **more,
    }
    return skorch.NeuralNetClassifier(Module, **settings)


def samples():
    x, y = plain.samples()
    return x.numpy(), y.numpy()


def watched(fitted):
    return dict(fitted.callbacks_)["watch"].seen_


def optimizer_for(model, **more):
    """As skorch makes it: from a list of all parameters, of which those of two dimensions compete."""
    given = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "compression": plain.COMPRESSION, **more}
    return gl.GSM(list(model.parameters()), **given)


def test_it_trains_as_a_plain_loop_does():
    model = plain.network()
    watched(net().fit(*samples())).same_as(plain.train(model, optimizer_for(model)))


def test_clipping_and_a_schedule():
    clip, lr = callbacks.GradientNormClipping(0.1), callbacks.LRScheduler(ExponentialLR, gamma=0.7)
    fitted = net(callbacks=[("clip", clip), ("lr", lr)]).fit(*samples())
    model = plain.network()
    optimizer = optimizer_for(model)
    expected = plain.train(
        model,
        optimizer,
        clip=lambda: clip_grad_norm_(model.parameters(), 0.1),
        each_epoch=ExponentialLR(optimizer, 0.7),
    )
    watched(fitted).same_as(expected)


def test_saved_parameters_go_on_to_the_bit(tmp_path):
    whole = net(max_epochs=4).fit(*samples())
    files = {f"f_{name}": tmp_path / name for name in ("params", "optimizer", "history")}
    net(max_epochs=2).fit(*samples()).save_params(**files)
    second = net(max_epochs=2, warm_start=True).initialize()
    second.load_params(**files)
    watched(second.partial_fit(*samples())).same_as(watched(whole), last=12)


def test_a_pickled_net_goes_on_to_the_bit():
    whole = net(max_epochs=4).fit(*samples())
    first = net(max_epochs=2).fit(*samples())
    second = pickle.loads(pickle.dumps(first))
    watched(second.partial_fit(*samples())).same_as(watched(whole), last=12)


def test_a_search_over_its_settings():
    grid = {"optimizer__compression": [2, 10.0], "optimizer__momentum": [0.0, 0.9]}
    search = GridSearchCV(net(callbacks=[]), grid, cv=2, scoring="accuracy").fit(*samples())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len({*search.cv_results_["mean_test_score"]}) > 1
    best = search.best_estimator_.optimizer_
    assert best.compression == search.best_params_["optimizer__compression"]
    twin = clone(net(optimizer__compression=7)).initialize()
    assert twin.optimizer_.nonzeros == 720 // 7


def test_a_budget_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match="compression must be a finite number >= 1"):
        net(optimizer__compression=0.5).initialize()
