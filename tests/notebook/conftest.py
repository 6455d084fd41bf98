"""Playgrounds to test: `board` makes new ones, `pg` is one that the tests of a module share, begun again for each.

And players: `start` makes them, `clock` is theirs.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from gsm_lab import Playground, Run
from gsm_lab.notebook import player
from gsm_lab.notebook.player import Player
from tests.notebook.players import Fake


@pytest.fixture
def board() -> Iterator[Callable[..., Playground]]:
    """Makes playgrounds on short runs, and closes them."""
    made: list[Playground] = []

    def new(run: Run | None = None, **kwargs: object) -> Playground:
        made.append(Playground(run or Run(hold=1.0, pretrain=0), **kwargs))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Playground]]:
    """The playground of the module, last in the list; the others have been closed by newer ones."""
    made: list[Playground] = []
    yield made
    for one in made:
        one.close()


@pytest.fixture
def pg(shared: list[Playground]) -> Playground:
    """A playground at its beginning. (To make one takes as long as twenty of these tests.)"""
    if not shared or shared[-1].player.closed:
        shared.append(Playground(Run(hold=1.0, pretrain=0)))
        shared[-1].beginning = dict(shared[-1].run.knobs)
    one = shared[-1]
    one.reset(**one.beginning)
    one.player.watched, one.state_line.value, one.state_note.value = False, "", ""
    return one


@pytest.fixture
def made() -> Iterator[list[Player]]:
    """Players to close at the end of the test."""
    players: list[Player] = []
    yield players
    for one in players:
        one.close()


@pytest.fixture
def start(made: list[Player]) -> Callable[..., Player]:
    def new(run: object = None, *args: object, **kwargs: object) -> Player:
        made.append(Player(Fake() if run is None else run, *args, **kwargs))
        return made[-1]

    return new


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The player's clock, standing still until a test moves it: `clock.now += 1`."""
    held = SimpleNamespace(now=100.0)
    monkeypatch.setattr(player, "time", SimpleNamespace(monotonic=lambda: held.now))
    return held
