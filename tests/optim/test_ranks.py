"""GSM on parameters that are spread over ranks, against one process that has all of them, to the bit."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsm_lab.optim import radix, selection
from gsm_lab.optim.ranks import digits as exchange
from gsm_lab.optim.ranks.group import agreed, mean, signature
from tests.optim import rank_cases as cases
from tests.ranks import World

BUDGET = 64 * 1024  # bytes that a rank may send in a step
FIRST = 8 * (22 + 2048)  # bytes of the first message of every step
ALL_DIGITS = [8 * 2048, 8 * 1024, 8 * 1024]
untimed = settings(deadline=None)


def world(size: int, folder: Path) -> Iterator[World]:
    ranks = World(size, folder)
    try:
        ranks.run(cases.without_compiled_passes)
        yield ranks
    finally:
        ranks.end()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from world(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from world(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue({2: "two", 4: "four"}[request.param])


# ------------------------------------------------------------------------------------------------ as one process


@pytest.mark.parametrize("kernel", [{}, {"foreach": True}], ids=["default", "foreach"])
def test_lenet_under_fsdp2_follows_one_process(ranks: World, kernel: dict[str, bool]) -> None:
    answers = ranks.run(cases.lenet_follows_one_process, 30 if kernel else 300, kernel)
    assert all(a["messages"] == [FIRST, *ALL_DIGITS[1:]] for a in answers)  # of the first step
    assert all(a["usual"] == (FIRST, 8 * 2048) and a["most"] <= BUDGET for a in answers)
    assert sum(a["active"] for a in answers) == 266_200 // 60


everywhere = [(2, kind) for kind in cases.FLAT] + [(4, kind) for kind in (*cases.FLAT, *cases.SQUARE)]
every_kind = pytest.mark.parametrize("ranks, kind", everywhere, indirect=["ranks"])
MORE = [(2, "rows"), (4, "all three"), (4, "on several meshes")]
most = [
    (*place, name) for place in everywhere for name in cases.CONTENTS if name in ("random", "tied") or place in MORE
]


@every_kind
def test_positions_in_the_whole_model(ranks: World, kind: str) -> None:
    ranks.run(cases.positions, kind)


@pytest.mark.parametrize("ranks, kind, name", most, indirect=["ranks"])
def test_every_placement_follows_one_process(ranks: World, kind: str, name: str) -> None:
    assert ranks.run(cases.follow_one_process, kind, name) == [12] * ranks.size


@pytest.mark.parametrize("way", ["foreach", "nesterov", "maximize"])
@pytest.mark.parametrize("kind", ["rows", "HSDP"])
def test_every_kernel_follows_one_process(four: World, kind: str, way: str) -> None:
    four.run(cases.follow_one_process, kind, "random", way)
    four.run(cases.follow_one_process, kind, "tied", way)


@every_kind
def test_fused_and_bfloat16_step_the_parts_of_the_same_active_set(ranks: World, kind: str) -> None:
    ranks.run(cases.follow_masked_sgd, kind, "random", fused=True)
    ranks.run(cases.follow_masked_sgd, kind, "bfloat16")


@every_kind
def test_the_cut_is_that_of_one_process(ranks: World, kind: str) -> None:
    ranks.run(cases.cut_as_one_process, kind)


def test_real_gradients_of_fsdp2(ranks: World) -> None:
    assert max(ranks.run(cases.trained, 40)) < 0.9


def test_real_gradients_of_fsdp2_on_two_dimensions(four: World) -> None:
    four.run(cases.trained, 5, "ab")


def test_fsdp2_over_tensor_parallelism(four: World) -> None:
    met = four.run(cases.fsdp_over_tensor_parallel)[0]
    assert any("Strided" in x or "_S(" in x for x in met) and len(met) >= 3


def test_gradients_that_are_partial_sums(ranks: World) -> None:
    ranks.run(cases.partial_gradients)


def test_candidates_are_this_ranks_own(ranks: World) -> None:
    ranks.run(cases.candidates)


def test_a_checkpoint_loads_on_another_number_of_ranks(two: World, four: World, tmp_path: Path) -> None:
    (saved, *_) = four.run(cases.checkpointed, str(tmp_path), False)
    assert saved["compression"] == 6
    assert two.run(cases.checkpointed, str(tmp_path), True) == [saved] * 2


# ------------------------------------------------------------------------------------------------ DDP


def test_under_ddp_ranks_pick_the_same_set_and_send_nothing_for_it(two: World) -> None:
    first, second = two.run(cases.ddp, 3)
    assert first == second and all(len(active) == (12 * 16 + 16 * 5) // 9 for active in first)


def test_agree(two: World) -> None:
    good = {"lr": 0.1, "momentum": 0.9, "compression": 60}
    assert two.run(cases.disagreement, [good, good]) == [None, None]
    assert two.run(cases.disagreement, [good, {**good, "lr": torch.tensor(0.1, dtype=torch.float64)}]) == [None, None]
    for name, value in {"compression": 59.999, "lr": 0.1001, "nesterov": True, "foreach": True}.items():
        said = two.run(cases.disagreement, [good, {**good, name: value}])
        what = "other settings" if name == "foreach" else name
        assert all(f"ranks disagree on {what}. " in x for x in said) and repr(value) in said[1]


def test_a_copy_has_the_gate_with_it(two: World) -> None:
    two.run(cases.a_copy_goes_on)


# ------------------------------------------------------------------------------------------------ what may go wrong


@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("tensor, value", [(2, float("nan")), (0, float("inf")), (5, float("-inf")), (1, float("nan"))])
def test_a_gradient_that_is_not_finite_is_refused_by_all(
    ranks: World, tensor: int, value: float, compression: float
) -> None:
    answers = ranks.run(cases.bad_gradient, tensor, value, compression)
    assert {kind for kind, _ in answers} == {"FloatingPointError"}
    named = [said for _, said in answers if f"'tensor{tensor}'" in said and f"holds {value}" in said]
    others = [said for _, said in answers if "on 1 other rank" in said]
    assert len(named) == 1 and len(others) == ranks.size - 1 and all("no weight was changed" in x for _, x in answers)


def test_a_copy_that_is_not_finite_is_refused_by_all(two: World) -> None:
    (first, said), (second, own) = two.run(cases.bad_copy)
    assert first == second == "FloatingPointError" and "on 1 other rank" in said and "holds inf" in own


@pytest.mark.parametrize("odd", [1, 4, 60])
def test_ranks_that_disagree_on_compression(ranks: World, odd: float) -> None:
    compressions = [3.0] * (ranks.size - 1) + [odd]
    answers = ranks.run(cases.different_compression, compressions)
    for (kind, said), compression in zip(answers, compressions, strict=True):
        assert kind == "ValueError" and "ranks disagree" in said and f"compression={compression}" in said


def test_ranks_that_disagree_on_the_model(two: World) -> None:
    assert all(kind == "ValueError" and "ranks disagree" in said for kind, said in two.run(cases.different_models))


def test_a_rank_without_prunable_weight_takes_part(ranks: World) -> None:
    ranks.run(cases.nothing_to_prune_on_one_rank)


@pytest.mark.parametrize("name", ["random", "constant"])
def test_ranks_whose_parts_are_all_empty_take_part(four: World, name: str) -> None:
    four.run(cases.follow_one_process, "rows", name, shapes=[(2, 9), (1,)])


def test_a_tensor_of_partial_sums_is_refused(two: World) -> None:
    for said in two.run(cases.partial_sums):
        assert "'layer.weight'" in said and "Partial" in said


@pytest.mark.parametrize("threshold", [1e3, 1e-3, 1e-44, 0.0, float("inf"), float("nan"), 0.6, 1.2])
def test_exact_whatever_the_last_threshold(ranks: World, threshold: float) -> None:
    """The threshold is 0.9 here: no more than two octaves away from the last one it takes two messages."""
    near, cold = 0.45 < threshold < 1.8, threshold < 1e-40
    for sent in ranks.run(cases.misled, threshold):
        rest = [8 * 2048] if near else ALL_DIGITS[cold:]
        assert sent == [FIRST, *rest] and sum(sent) <= BUDGET


def test_exact_when_ranks_come_with_different_bounds(two: World) -> None:
    for sent in two.run(cases.different_pasts):
        assert sent == [FIRST, *ALL_DIGITS]


def check_lost(kind: str, said: str) -> None:
    assert kind == "RankLost" and "did not answer" in said and "no weight" in said and "last checkpoint" in said


def test_a_rank_that_dies(tmp_path: Path) -> None:
    for ranks in world(2, tmp_path):
        check_lost(*ranks.run(cases.dies)[0])


def test_a_rank_that_hangs(two: World) -> None:
    check_lost(*two.run(cases.hangs, 2)[0])


# ------------------------------------------------------------------------------------------------ the exchange alone


class Threads:
    """Ranks that are threads: `sum` waits for all, as a collective does."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, [0] * size
        self._meet, self._brought = threading.Barrier(size, timeout=20), [None] * size

    def run(self, function: Callable[..., Any]) -> list[Any]:
        """What `function(rank, total)` returns or raises on each."""
        answers: list[Any] = [None] * self.size

        def work(rank: int) -> None:
            def total(counts: torch.Tensor) -> torch.Tensor:
                self._brought[rank] = counts
                self.sent[rank] += counts.numel() * counts.element_size()
                self._meet.wait()
                result = sum(self._brought)
                self._meet.wait()
                return result

            try:
                answers[rank] = function(rank, total)
            except Exception as error:
                answers[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(1, self.size)]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        return answers


def over_ranks(metric: np.ndarray, owner: np.ndarray, size: int, q: int, bound: float) -> None:
    """The exchange over simulated ranks chooses what `selection` chooses in one process."""
    bits = torch.from_numpy(np.minimum(metric.view(np.int32), radix.NAN))
    start = exchange.Top(int(np.float32(bound).view(np.int32)), 0, 0, True, 0, 0).base

    def choose(rank: int, total: radix.SumOverRanks) -> list[int]:
        mine = np.flatnonzero(owner == rank)
        values = bits[mine]
        own = exchange.Own(metric.size, q, mine.size, start, "", None)
        top = exchange.top_q(own, lambda least: values[values >= least], lambda: None, total)
        if top is None:
            return mine.tolist()
        positions = torch.from_numpy(mine[(values == top.bits).numpy()])
        last = radix.last_kept(positions, top.kept, top.n, total) if top.left_out else metric.size
        chosen = (values > top.bits) | ((values == top.bits) & (torch.from_numpy(mine) <= last))
        return mine[(chosen & (values > 0)).numpy()].tolist()

    world = Threads(size)
    answers = world.run(choose)
    assert max(world.sent) <= BUDGET
    expected = (
        np.arange(metric.size)
        if q == metric.size
        else np.flatnonzero(selection.chosen(metric, selection.top_q(metric, q)))
    )
    assert sorted(i for part in answers for i in part) == expected.tolist()


values = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, float("inf"), float("nan"), 1e-45, 3e-45, 1e-38, 3.4e38]),
    st.floats(0, 1e6, width=32),
)


@settings(deadline=None, max_examples=1000)
@given(st.lists(st.tuples(values, st.integers(0, 3)), min_size=1, max_size=60), st.integers(1, 4), values, st.data())
def test_the_exchange_equals_one_process(
    entries: list[tuple[float, int]], size: int, bound: float, data: st.DataObject
) -> None:
    metric = np.array([value for value, _ in entries], dtype=np.float32)
    owner = np.array([rank % size for _, rank in entries])
    over_ranks(metric, owner, size, data.draw(st.integers(1, metric.size)), bound)


@pytest.mark.parametrize("kind", ["random", "constant", "95% zero", "zero", "tied"])
@pytest.mark.parametrize("q", [1, 700, 20_000, 41_999, 42_000])
@pytest.mark.parametrize("packed", [exchange.PACKED, 0])
def test_the_exchange_on_more_numbers(kind: str, q: int, packed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as where there are too many numbers for two counts in a word."""
    monkeypatch.setattr(exchange, "PACKED", packed)
    random = np.random.default_rng(0)
    metric = {
        "random": random.lognormal(0, 4, 42_000),
        "constant": np.full(42_000, 0.25),
        "95% zero": np.where(random.random(42_000) < 0.05, random.random(42_000), 0),
        "zero": np.zeros(42_000),
        "tied": random.integers(0, 5, 42_000),
    }[kind].astype(np.float32)
    over_ranks(metric, random.integers(0, 4, 42_000), 4, q, 0.2)


@untimed
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30, unique=True), st.data())
def test_the_last_position_that_stays(positions: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(positions)))
    got = radix.last_kept(torch.tensor(positions), keep, 2**63 - 1, lambda counts: counts)
    assert got == sorted(positions)[keep - 1]


@untimed
@given(st.lists(st.integers(0, 2**60 - 1), min_size=1, max_size=6))
def test_signatures_tell_whether_all_agree(numbers: list[int]) -> None:
    sums = [sum(column) for column in zip(*(signature(x, 3) for x in numbers), strict=True)]
    assert agreed(sums, len(numbers)) == (numbers[0] if len(set(numbers)) == 1 else None)
    assert mean(sums, len(numbers)) == pytest.approx(sum(numbers) / len(numbers))


def test_the_most_a_rank_sends() -> None:
    """The sum in the module's account: header and digits, a leading one twice, 63 bits of positions, a word."""
    most = 8 * (22 + 2 * 2048 + 2 * 1024 + 9 * 128 + 1)
    assert most <= BUDGET and most == pytest.approx(57.2 * 1024, rel=1e-3)
