"""PyTorch-Ignite's Engine, with GSM as its optimizer."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR

from tests.clients import plain

pytest.importorskip("ignite")
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, PiecewiseLinear


def made():
    model = plain.network()
    optimizer = plain.gsm(model)
    return model, optimizer, plain.Watched(optimizer)


def test_its_supervised_trainer_trains_as_a_plain_loop_does():
    model, optimizer, seen = made()
    create_supervised_trainer(model, optimizer, F.cross_entropy).run(plain.batches(), max_epochs=3)
    model = plain.network()
    seen.same_as(plain.train(model, plain.gsm(model)))


def test_clipping_accumulation_and_a_schedule():
    model, optimizer, seen = made()

    def step(engine, batch):
        x, y = batch
        (F.cross_entropy(model(x), y) / 2).backward()
        if engine.state.iteration % 2 == 0:
            clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()

    trainer = Engine(step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, LRScheduler(ExponentialLR(optimizer, 0.7)))
    trainer.run(plain.batches(), max_epochs=3)
    model_of_plain = plain.network()
    optimizer_of_plain = plain.gsm(model_of_plain)
    expected = plain.train(
        model_of_plain,
        optimizer_of_plain,
        clip=lambda: clip_grad_norm_(model_of_plain.parameters(), 0.1),
        accumulate=2,
        each_epoch=ExponentialLR(optimizer_of_plain, 0.7),
    )
    seen.same_as(expected)


def test_its_parameter_schedules_move_the_compression():
    # they write into every parameter group, step by step
    model, optimizer, seen = made()
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    ramp = PiecewiseLinear(optimizer, "compression", milestones_values=[(0, 2.0), (12, 20.0)])
    trainer.add_event_handler(Events.ITERATION_STARTED, ramp)
    trainer.run(plain.batches(), max_epochs=3)
    assert seen.counts == [720 * 2 // (4 + 3 * i) for i in range(12)] + [36] * 6
    assert optimizer.compression == 20
    for active, count in zip(seen.active, seen.counts, strict=True):
        assert int(active.sum()) == count


def test_a_checkpoint_goes_on_to_the_bit(tmp_path):
    def trainer_of(model, optimizer):
        trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)

        @trainer.on(Events.EPOCH_STARTED)
        def change(engine):
            optimizer.compression = 1 + 3 * engine.state.epoch

        return trainer

    model, optimizer, whole = made()
    trainer_of(model, optimizer).run(plain.batches(), max_epochs=4)
    assert whole.counts[::6] == [720 // 4, 720 // 7, 720 // 10, 720 // 13]

    model, optimizer, _ = made()
    trainer = trainer_of(model, optimizer)
    kept = {"model": model, "optimizer": optimizer, "trainer": trainer}
    saver = Checkpoint(kept, DiskSaver(tmp_path, create_dir=False, require_empty=False), n_saved=None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    trainer.run(plain.batches(), max_epochs=2)

    model, optimizer, seen = made()
    trainer = trainer_of(model, optimizer)
    state = torch.load(tmp_path / saver.last_checkpoint, weights_only=True)
    Checkpoint.load_objects({"model": model, "optimizer": optimizer, "trainer": trainer}, state)
    assert optimizer.compression == 7
    trainer.run(plain.batches(), max_epochs=4)
    seen.same_as(whole, last=12)
