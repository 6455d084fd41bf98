"""Every method under every placement: as in one process under DDP, and under FSDP2 where it can do with shards."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gsm_lab import Run, distributed, methods
from gsm_lab.distributed import world
from gsm_lab.training.method import GSMMethod
from tests.processes import in_ranks
from tests.runs import differs, everything, mine, net

SMALL = {"batch_size": 8, "pretrain": 1, "epochs": 3, "compression": 4.0, "evaluate_every": 7, "lr": 0.05}
# options with which each does what it is there for within a few steps
OPTIONS = {"l1": {"strength": 1e-2}, "admm": {"rho": 0.1}, "gates": {"sparsity": 1e-2, "bimodal": 2e-3, "gate_lr": 3.0}}
OPTIONS |= {name: {"rounds": 3} for name in ("magnitude", "lobs", "fisher")}
STEPS = 22  # of 30; the network is settled after 18
TIMEOUT = 600.0  # seconds: far more than anything here takes


def made(method: str, placement: object = None, **settings: object) -> Run:
    # without dropout, whose random numbers differ from rank to rank, and without batch norm, which sees a rank's rows
    model = net(drop=0.0)
    model.body[1] = torch.nn.Identity()
    given = SMALL | OPTIONS.get(method, {}) | settings
    return Run(model, mine(), method=methods.kind(method)(), placement=placement, **given)


def all_of(run: Run) -> dict[str, object]:
    tensors, plain = run.method.state(run)
    return everything(run) | {"method": {name: t.clone() for name, t in tensors.items()}, "about": plain}


def straight_and_resumed(folder: Path) -> dict[str, tuple[list[str], dict[str, object]]]:
    """In a rank, of each method: in what a run differs that was resumed halfway, and all of the straight one."""
    found = {}
    with world.joined(TIMEOUT):
        for method in methods.METHODS:
            straight, half = (made(method, distributed.DDP()) for _ in range(2))
            straight.step(STEPS)
            half.step(STEPS // 2)
            half.save(folder / method)
            fresh = made(method)  # for a model of the same kind
            again = methods.resume(folder / method, fresh.model, mine(), placement=distributed.DDP())
            again.step(STEPS - STEPS // 2)
            found[method] = differs(all_of(straight), all_of(again)), all_of(straight)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[list[str], dict[str, object]]]]:
    return [ended.result for ended in in_ranks(2, straight_and_resumed, tmp_path_factory.mktemp("methods"))]


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_trains_and_resumes_under_ddp(method: str, trained: list) -> None:
    (zero, run), (one, other) = (found[method] for found in trained)
    assert zero == one == [], "what was resumed goes on as if it had never stopped"
    assert differs(run, other) == [], "every rank has the same run"
    alone = made(method)
    alone.step(STEPS)
    here = all_of(alone)
    np.testing.assert_allclose(run["history"]["loss"], here["history"]["loss"], rtol=0.02, atol=1e-3)
    assert run["history"]["active"].iloc[-1] == here["history"]["active"].iloc[-1]
    if method == "random":  # whose choice depends on nothing that is rounded
        assert torch.equal(run["method"]["inside"], here["method"]["inside"])


def refused(methods_given: list[str]) -> list[str]:
    said = []
    with world.joined(TIMEOUT):
        for method in methods_given:
            try:
                said.append(str(made(method, distributed.FSDP())))
            except ValueError as error:
                said.append(str(error))
    return said


def test_a_method_that_needs_whole_tensors_says_so_under_fsdp() -> None:
    rivals = [name for name in methods.METHODS if name != "gsm"]
    for ended in in_ranks(2, refused, rivals):
        for name, said in zip(rivals, ended.result, strict=True):
            assert said == f"method {name} needs all of each tensor, where FSDP2 spreads them over ranks: use DDP"
    assert GSMMethod.shards
