"""What GSM costs under FSDP2: its training step against plain SGD's, in turns in the same processes."""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from gsm_lab import data, models
from gsm_lab.optim import GSM, param_groups
from tests.bench.test_history import machine
from tests.optim.rank_cases import counting
from tests.ranks import World

WARM_UP, STEPS, BATCH = 30, 150, 64
FACTOR, MORE = 1.25, 2e-3  # of SGD's step, and seconds on top


def compare() -> dict[str, Any]:
    """LeNet-300-100 at 60x on the digits: medians in seconds of whole steps and of `optimizer.step()`; bytes sent."""
    torch.manual_seed(0)
    first = models.lenet300()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    hyper = {"lr": 0.03, "momentum": 0.98, "weight_decay": 1e-3}
    contestants = {}
    for name, make in {"SGD": torch.optim.SGD, "GSM": lambda groups, **k: GSM(groups, **k, compression=60)}.items():
        model = copy.deepcopy(first)
        for layer in (*(m for m in model.children() if isinstance(m, nn.Linear)), model):
            fully_shard(layer, mesh=mesh)
        contestants[name] = model, make(param_groups(model), **hyper), [], []
    batches, sent = data.Batches(data.load("digits"), BATCH, seed=dist.get_rank()), []
    for step in range(WARM_UP + STEPS):
        x, y = batches.batch(step)
        for name in sorted(contestants, reverse=bool(step % 2)):
            model, opt, whole, alone = contestants[name]
            dist.barrier()
            start = time.perf_counter()
            opt.zero_grad()
            cross_entropy(model(x), y).backward()
            between = time.perf_counter()
            with counting() as messages:
                opt.step()
            end = time.perf_counter()
            whole.append(end - start)
            alone.append(end - between)
            if name == "GSM":
                sent.append((sum(messages), len(messages)))
    medians = {
        name: (statistics.median(whole[WARM_UP:]), statistics.median(alone[WARM_UP:]))
        for name, (_, _, whole, alone) in contestants.items()
    }
    usual = statistics.mode(sent)
    return {"machine": machine(), "medians": medians, "usual": usual, "again": sum(x != usual for x in sent[WARM_UP:])}


@pytest.mark.parametrize("size", [2, 4])
def test_a_step_under_fsdp2(size: int, tmp_path: Path) -> None:
    world = World(size, tmp_path)
    try:
        answers = world.run(compare)
    finally:
        world.end()
    (sgd, sgd_alone), (gsm, gsm_alone) = (
        [max(a["medians"][name][i] for a in answers) for i in (0, 1)] for name in ("SGD", "GSM")
    )
    bytes_, messages = answers[0]["usual"]
    limit = FACTOR * sgd + MORE
    print(f"\n{answers[0]['machine']}")
    print(f"LeNet-300-100, 60x, FSDP2, {size} ranks (gloo), batch {BATCH} each; medians of {STEPS}")
    print("| | whole step, ms | optimizer.step(), ms |\n|---|---|---|")
    print(f"| SGD | {1e3 * sgd:.2f} | {1e3 * sgd_alone:.2f} |\n| GSM | {1e3 * gsm:.2f} | {1e3 * gsm_alone:.2f} |")
    print(
        f"GSM / SGD {gsm / sgd:.2f}, limit {1e3 * limit:.2f} ms (1.25 of SGD + 2 ms); a rank sends {bytes_:,} bytes in"
    )
    print(f"{messages} messages a step; {answers[0]['again']} of {STEPS} steps needed more")
    assert bytes_ <= 64 * 1024
    assert gsm <= limit
