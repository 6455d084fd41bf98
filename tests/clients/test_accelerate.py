"""Hugging Face's Accelerate, with GSM handed to `prepare`."""

import pytest
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.clients import plain

accelerate = pytest.importorskip("accelerate")


class Prepared:
    """What `prepare` makes of the network, the optimizer, the batches and a schedule."""

    def __init__(self, accumulate=1, schedule=False):
        self.doing = accelerate.Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=accumulate)
        model, data = plain.network(), DataLoader(TensorDataset(*plain.samples()), plain.BATCH)
        optimizer = plain.gsm(model)
        self.seen = plain.Watched(optimizer)
        made = self.doing.prepare(model, optimizer, data, *([ExponentialLR(optimizer, 0.95)] if schedule else []))
        self.model, self.optimizer, self.data, *self.schedule = made

    def train(self, epochs=3, clip=None, begin_epoch=lambda epoch: None):
        """As Accelerate's documentation has it."""
        for epoch in epochs if isinstance(epochs, range) else range(epochs):
            begin_epoch(epoch)
            for x, y in self.data:
                with self.doing.accumulate(self.model):
                    self.doing.backward(F.cross_entropy(self.model(x), y))
                    if clip is not None and self.doing.sync_gradients:
                        self.doing.clip_grad_norm_(self.model.parameters(), clip)
                    self.optimizer.step()
                    for schedule in self.schedule:
                        schedule.step()
                    self.optimizer.zero_grad()
        return self.seen


def test_it_trains_as_a_plain_loop_does():
    model = plain.network()
    Prepared().train().same_as(plain.train(model, plain.gsm(model)))


def test_clipping_accumulation_and_a_schedule():
    model = plain.network()
    optimizer = plain.gsm(model)
    expected = plain.train(
        model,
        optimizer,
        clip=lambda: clip_grad_norm_(model.parameters(), 0.1),
        accumulate=2,
        each_step=ExponentialLR(optimizer, 0.95),
    )
    Prepared(accumulate=2, schedule=True).train(clip=0.1).same_as(expected)


@pytest.mark.parametrize("door", ["the optimizer inside", "the groups"])
def test_what_is_set_behind_its_wrapper_counts(door):
    # (`optimizer.compression = 30` on the wrapper itself would make an attribute of it that nobody reads)
    def change(wrapper, epoch):
        if epoch == 1 and door == "the groups":
            for group in wrapper.param_groups:
                group["compression"] = 30
        elif epoch == 1:
            wrapper.optimizer.compression = 30

    def change_plain(epoch):
        if epoch == 1:
            optimizer.compression = 30

    prepared, model = Prepared(), plain.network()
    optimizer = plain.gsm(model)
    seen = prepared.train(begin_epoch=lambda epoch: change(prepared.optimizer, epoch))
    seen.same_as(plain.train(model, optimizer, begin_epoch=change_plain))
    assert seen.counts == [144] * 6 + [24] * 12
    assert prepared.optimizer.optimizer.compression == 30


def test_a_saved_state_goes_on_to_the_bit(tmp_path):
    def change(prepared):
        def begin(epoch):
            prepared.optimizer.optimizer.compression = 4 + 3 * epoch

        return begin

    whole = Prepared(schedule=True)
    whole.train(4, begin_epoch=change(whole))
    first = Prepared(schedule=True)
    first.train(2, begin_epoch=change(first))
    first.doing.save_state(tmp_path / "a")
    second = Prepared(schedule=True)
    second.doing.load_state(tmp_path / "a")
    assert second.optimizer.optimizer.compression == 7
    second.train(range(2, 4), begin_epoch=change(second)).same_as(whole.seen, last=12)
