"""A run in several threads, a player's among them: whole steps only, nothing disturbed; and copies of it."""

import copy
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gsm_lab import Run, methods
from gsm_lab.notebook.player import Player
from gsm_lab.studies import taylor
from tests.runs import differs, everything, mine, net, tiny

SECONDS = 300  # that something may take before a test gives up on it


class Drawing(nn.Module):
    """Batch norm, which a forward pass in the wrong mode spoils, and dropout, whose numbers anybody may take."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def drawing(**knobs: object) -> Run:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return tiny(Drawing(), **{"epochs": 100, "hold": 1.0, "pretrain": 0} | knobs)


@pytest.fixture
def played() -> Iterator[Callable[..., tuple[Run, Player]]]:
    """A run that a player has taken some steps of, and goes on with until 300."""
    players = []

    def start(run: Run, steps: int | None = 300) -> tuple[Run, Player]:
        players.append(Player(run))
        reached = threading.Event()
        run.recorders.append(lambda step, *_: step >= 3 and reached.set())
        players[-1].play(steps)
        assert reached.wait(SECONDS)
        return run, players[-1]

    yield start
    for player in players:
        player.close()


def finished(player: Player) -> None:
    while player.playing:
        player._thread.join(0.01)
    player.pause()


def test_looking_and_saving_beside_a_player_find_whole_steps_and_change_nothing(
    played: Callable[..., tuple[Run, Player]], tmp_path: Path
) -> None:
    run, player = played(drawing())
    looks = 0
    while player.playing:
        run.evaluate(cut=bool(looks % 2))
        run.history.frame()
        if looks < 4:
            run.save(tmp_path / str(looks))
            taylor.of_run(run, samples=8)
        looks += 1
    finished(player)
    alone = drawing()
    saved = {}
    for _ in range(run.steps):
        alone.step()
        saved[alone.steps] = everything(alone)
    assert looks > 1 and run.steps == 300
    assert differs(everything(run), everything(alone)) == []
    for i in range(min(looks, 4)):
        again = Run.resume(tmp_path / str(i), model=Drawing(), data=mine())
        assert differs(everything(again), saved[again.steps]) == []


@pytest.mark.parametrize("name", ["step", "train", "pretrain"])
def test_to_step_it_oneself_pauses_the_player(played: Callable[..., tuple[Run, Player]], name: str) -> None:
    run, player = played(drawing(), None)
    before = run.steps
    {"step": lambda: run.step(20), "train": lambda: run.train(1, progress=False), "pretrain": run.pretrain}[name]()
    assert not player.playing and "stepped from elsewhere" in player.note and player.error is None
    assert run.steps >= before + {"step": 20, "train": 10, "pretrain": 0}[name]
    rows = run.history.frame()["step"]
    assert list(rows) == list(range(1, run.steps + 1))
    player.play(5)
    finished(player)
    assert len(run.history.frame()) == run.steps == len(rows) + 5


@pytest.mark.parametrize("act", ["reset", "cut", "set"])
def test_changes_come_between_two_steps(played: Callable[..., tuple[Run, Player]], act: str) -> None:
    run, player = played(drawing(), None)
    with run.lock:
        before = run.steps
        {"reset": run.reset, "cut": run.cut, "set": lambda: run.set(momentum=0.5)}[act]()
        if act == "reset":
            assert run.steps == 0 and len(run.history.frame()) == 0
        elif act == "cut":
            assert sum(int(p.count_nonzero()) for p in run.tensors) <= run.nonzeros
        else:
            assert run.history.events[-1]["step"] == before
    player.pause()
    assert player.error is None and len(run.history.frame()) == run.steps


def test_another_runs_first_weights_are_its_own_while_one_is_played(
    played: Callable[..., tuple[Run, Player]],
) -> None:
    wanted = Run("lenet300", "digits", pretrain=0, seed=3).model.state_dict()
    torch.manual_seed(11)
    stream = torch.rand(3)
    run, player = played(Run("lenet300", "digits", pretrain=0, hold=1.0, batch_size=8), None)
    with run.lock:
        run.recorders.clear()
    torch.manual_seed(11)
    made = [Run("lenet300", "digits", pretrain=0, seed=3).model.state_dict() for _ in range(3)]
    assert torch.equal(torch.rand(3), stream)  # and a network that draws nothing leaves the program's numbers alone
    player.pause()
    for state in made:
        assert all(torch.equal(state[name], t) for name, t in wanted.items())


def test_two_threads_that_train_a_run_take_turns() -> None:
    run = drawing(pretrain=2, evaluate_every=1000)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: run.step(30), range(2)))
    straight = drawing(pretrain=2, evaluate_every=1000)
    straight.step(60)
    assert differs(everything(run), everything(straight)) == []


def test_two_runs_in_two_threads_are_those_of_one_each() -> None:
    runs = [drawing(seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.train(3, progress=False), runs))
    for seed, run in zip((1, 2), runs, strict=True):
        alone = drawing(seed=seed)
        alone.train(3, progress=False)
        assert differs(everything(run), everything(alone)) == []


def test_a_reset_in_another_thread_ends_the_training_here() -> None:
    run = drawing(pretrain=1)
    run.recorders.append(lambda step, *_: step == 4 and threading.Thread(target=run.reset).start())
    with pytest.raises(RuntimeError, match="reset by another thread"):
        run.step(100_000)
    assert run.steps == 0 and run.base is None
    run.step(3)  # dense steps first, as ever
    assert run.dense_steps == 10


@pytest.mark.parametrize(
    "act",
    [
        lambda run, folder: run.save(folder),
        lambda run, folder: run.reset(),
        lambda run, folder: run.step(),
        lambda run, folder: run.train(1),
        lambda run, folder: copy.deepcopy(run),
    ],
    ids=["save", "reset", "step", "train", "deepcopy"],
)
def test_a_recorder_may_look_and_move_knobs_but_not_cut_a_step_short(
    act: Callable[[Run, Path], object], tmp_path: Path
) -> None:
    run = tiny()
    run.recorders.append(lambda *_: run.evaluate(cut=True) and run.set(momentum=0.8))
    run.step(3)
    assert run.knobs["momentum"] == 0.8
    run.recorders.append(lambda *_: act(run, tmp_path / "a"))
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        run.step()
    run.recorders.clear()
    run.save(tmp_path / "a")


# ------------------------------------------------------------------------------------------------ copies


def fresh(run: Run) -> None:
    pass


def dense(run: Run) -> None:
    run.pretrain(4)


def gated(run: Run) -> None:
    run.step(13)


def frozen_and_cut(run: Run) -> None:
    run.set(cut_at=0.2)
    run.step(40)


@pytest.mark.parametrize("state", [fresh, dense, gated, frozen_and_cut])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run)), copy.copy])
def test_a_copy_goes_on_alike_and_shares_nothing(state: Callable[[Run], None], copied: Callable[[Run], Run]) -> None:
    run = tiny(Drawing())
    state(run)
    before = everything(run)
    other = copied(run)
    assert differs(everything(other), before) == []
    other.step(9)
    other.set(momentum=0.7)
    assert differs(everything(run), before) == []
    run.step(9)
    run.set(momentum=0.7)
    assert differs(everything(run), everything(other)) == []
    run.reset()
    other.reset()
    assert differs(everything(run), everything(other)) == []


class Keeping(nn.Module):
    """Keeps what it has computed, and so does its loss: PyTorch's own `copy.deepcopy` refuses such tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.all: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.a(x).relu()
        self.all["last"] = [self.last, x]
        return self.b(self.last)


class KeepingLoss(nn.CrossEntropyLoss):
    def forward(self, answer: Tensor, y: Tensor) -> Tensor:
        self.last = super().forward(answer, y)
        return self.last


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run)), copy.copy])
def test_a_model_may_keep_what_it_computes(copied: Callable[[Run], Run]) -> None:
    run = tiny(Keeping(), loss=KeepingLoss())
    run.step(7)
    run.loss(run.model(run.data.train_x[:8]), run.data.train_y[:8])
    for one in (run.model, run.loss):
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(one)
    other = copied(run)
    assert other.model.last is other.model.all["last"][0] and other.model.last is not run.model.last
    for one in (run, other):
        one.step(9)
    assert differs(everything(run), everything(other)) == []


@pytest.mark.parametrize("method", ["dns", "fisher", "gates"])
def test_so_do_copies_of_rivals(method: str) -> None:
    run = Run(net(), mine(), batch_size=8, pretrain=1, epochs=6, compression=4.0, method=methods.kind(method)())
    run.step(25)
    other = copy.deepcopy(run)
    run.step(20)
    other.step(20)
    assert differs(everything(run), everything(other)) == []


class Counting:
    def __init__(self, run: Run) -> None:
        self.run, self.seen = run, 0
        run.recorders.append(self)

    def __call__(self, *_: object) -> None:
        self.seen += 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_a_recorder_is_copied_with_its_run(copied: Callable[[Run], Run]) -> None:
    run = tiny(Drawing())
    counting = Counting(run)
    run.step(2)
    other = copied(run)
    other.step(3)
    assert other.recorders[0].run is other and (other.recorders[0].seen, counting.seen) == (5, 2)


def test_a_copy_of_a_run_that_is_played_is_of_a_whole_step(played: Callable[..., tuple[Run, Player]]) -> None:
    run, player = played(drawing(), None)
    run.recorders.clear()
    other = copy.deepcopy(run)
    player.pause()
    steps = other.steps
    other.step(5)  # nobody plays it
    alone = drawing()
    alone.step(steps + 5)
    assert differs(everything(other), everything(alone)) == []


def test_a_run_that_nobody_holds_is_gone_at_once() -> None:
    import gc

    run = tiny(net())
    run.step(12)
    run.evaluate(cut=True)
    run.history.frame()
    run.reset()
    model = weakref.ref(run.model)
    ref = weakref.ref(run)
    gc.collect()
    gc.disable()
    try:
        del run
        assert ref() is None and model() is None
    finally:
        gc.enable()
