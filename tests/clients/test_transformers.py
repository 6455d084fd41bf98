"""Hugging Face's Trainer, with GSM and a schedule passed by `optimizers=`."""

import pytest
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR

from tests.clients import plain

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Model(nn.Module):
    """The plain network as a Trainer wants it: it computes its loss."""

    def __init__(self):
        super().__init__()
        self.network = plain.network()

    def forward(self, x, labels):
        logits = self.network(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Change(transformers.TrainerCallback):
    """Sets the compression when an epoch begins, on what the Trainer calls the optimizer."""

    def on_epoch_begin(self, args, state, control, optimizer=None, **_):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
        optimizer.compression = 4 + 3 * round(state.epoch)


def trainer(folder, epochs=3, callbacks=(), **more):
    """Returns it, and who watches its optimizer."""
    model = Model()
    optimizer = plain.gsm(model.network)
    settings = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": plain.BATCH,
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        **more,
    }
    samples = [{"x": x, "labels": y} for x, y in zip(*plain.samples(), strict=True)]
    doing = transformers.Trainer(
        model,
        transformers.TrainingArguments(str(folder), **settings),
        train_dataset=samples,
        optimizers=(optimizer, ExponentialLR(optimizer, 0.95)),
        callbacks=list(callbacks),
    )
    return doing, plain.Watched(optimizer)


def test_it_trains_as_a_plain_loop_does(tmp_path):
    doing, seen = trainer(tmp_path)
    doing.train()
    model = plain.network()
    optimizer = plain.gsm(model)
    seen.same_as(plain.train(model, optimizer, each_step=ExponentialLR(optimizer, 0.95)))


def test_clipping_and_accumulation(tmp_path):
    doing, seen = trainer(tmp_path, max_grad_norm=0.1, gradient_accumulation_steps=2)
    doing.train()
    model = plain.network()
    optimizer = plain.gsm(model)
    expected = plain.train(
        model,
        optimizer,
        clip=lambda: clip_grad_norm_(model.parameters(), 0.1),
        accumulate=2,
        each_step=ExponentialLR(optimizer, 0.95),
    )
    seen.same_as(expected)


def test_a_checkpoint_goes_on_to_the_bit(tmp_path):
    doing, whole = trainer(tmp_path / "a", 4, [Change()])
    doing.train()
    assert whole.counts[::6] == [720 // 4, 720 // 7, 720 // 10, 720 // 13]
    doing, seen = trainer(tmp_path / "b", 4, [Change()], save_strategy="epoch")
    doing.train()
    seen.same_as(whole)
    doing, seen = trainer(tmp_path / "b", 4, [Change()])
    doing.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-12"))
    seen.same_as(whole, last=12)
