"""PyTorch Lightning's Trainer, with GSM from `configure_optimizers`."""

import logging
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.clients import plain

pl = pytest.importorskip("pytorch_lightning")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


class Module(pl.LightningModule):
    """The plain network; `begin_epoch(optimizer, epoch)` may change what the optimizer is set to."""

    def __init__(self, begin_epoch=lambda optimizer, epoch: None, schedule=False):
        super().__init__()
        self.network, self.begin_epoch, self.schedule = plain.network(), begin_epoch, schedule

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        self.optimizer = plain.gsm(self.network)
        self.seen = plain.Watched(self.optimizer)
        return [self.optimizer], [ExponentialLR(self.optimizer, 0.7)] if self.schedule else []

    def on_train_epoch_start(self):
        self.begin_epoch(self.optimizers(), self.current_epoch)


class ByHand(Module):
    """The same with Lightning's manual optimization."""

    automatic_optimization = False

    def training_step(self, batch, _):
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(x), y))
        optimizer.step()
        assert torch.equal(optimizer.active_mask(), self.optimizer.active_mask()), "the wrapper tells what happened"
        assert optimizer.threshold == self.optimizer.threshold > 0


def trainer(epochs, **more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet, **more)


def fit(module, epochs=3, ckpt_path=None, **more):
    """Train it; returns the trainer."""
    doing = trainer(epochs, **more)
    data = DataLoader(TensorDataset(*plain.samples()), plain.BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        doing.fit(module, data, ckpt_path=ckpt_path)
    return doing


def test_it_trains_as_a_plain_loop_does():
    module, model = Module(), plain.network()
    fit(module)
    module.seen.same_as(plain.train(model, plain.gsm(model)))


def test_manual_optimization_and_what_its_wrapper_tells():
    module, model = ByHand(), plain.network()
    fit(module)
    module.seen.same_as(plain.train(model, plain.gsm(model)))


def test_clipping_accumulation_and_a_schedule():
    module, model = Module(schedule=True), plain.network()
    fit(module, gradient_clip_val=0.1, accumulate_grad_batches=2)
    optimizer = plain.gsm(model)

    def clip():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]  # in this order, as it does
        clip_grad_norm_(parameters, 0.1)

    expected = plain.train(model, optimizer, clip=clip, accumulate=2, each_epoch=ExponentialLR(optimizer, 0.7))
    module.seen.same_as(expected)


@pytest.mark.parametrize("name, value", [("compression", 12.0), ("nonzeros", 40), ("smoothing", 0.9)])
def test_what_is_set_on_its_wrapper_counts(name, value):
    def change(optimizer, epoch):
        if epoch == 1:
            setattr(optimizer, name, value)

    module, model = Module(change), plain.network()
    fit(module)
    optimizer = plain.gsm(model)
    module.seen.same_as(plain.train(model, optimizer, begin_epoch=lambda epoch: change(optimizer, epoch)))
    assert getattr(optimizer, name) == value


@pytest.mark.parametrize("kind", [Module, ByHand])
def test_a_checkpoint_goes_on_to_the_bit(tmp_path, kind):
    def change(optimizer, epoch):
        optimizer.compression = 4 + 3 * epoch

    whole = kind(change, schedule=kind is Module)
    fit(whole, 4)
    first = kind(change, schedule=kind is Module)
    fit(first, 2).save_checkpoint(tmp_path / "a.ckpt")
    second = kind(lambda optimizer, epoch: change(optimizer, epoch) if epoch > 2 else None, schedule=kind is Module)
    # in its first epoch nobody sets the compression, and the one that was saved is in force: 7, not 10 or 5
    fit(second, 4, ckpt_path=tmp_path / "a.ckpt")
    assert second.seen.counts[0] == 720 // 7
    again = kind(change, schedule=kind is Module)
    fit(again, 4, ckpt_path=tmp_path / "a.ckpt")
    again.seen.same_as(whole.seen, last=12)
