"""GSM on parameters that are spread over ranks, against one process that has all of them, to the bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.optim import rank_cases as cases
from tests.optim.forms import BUDGET
from tests.ranks import World

USUAL = [8 * (16 + 2048), 8 * 1024, 8 * 1024]  # bytes of the messages of a step without ties


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
    assert all(a["usual"] == tuple(USUAL) and a["most"] <= BUDGET for a in answers)
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


def test_a_step_takes_three_messages(ranks: World) -> None:
    assert ranks.run(cases.sent_in_a_step) == [USUAL] * ranks.size


def check_lost(kind: str, said: str) -> None:
    assert kind == "RankLost" and "did not answer" in said and "no weight" in said and "last checkpoint" in said


def test_a_rank_that_dies(tmp_path: Path) -> None:
    for ranks in world(2, tmp_path):
        check_lost(*ranks.run(cases.dies)[0])


def test_a_rank_that_hangs(two: World) -> None:
    check_lost(*two.run(cases.hangs, 2)[0])
