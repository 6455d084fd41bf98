"""What `test_sharded` runs on every rank: each function is called on all ranks of a gloo group."""

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import accumulate
from statistics import mode
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.nn.functional import cross_entropy

from gsm_lab import models
from gsm_lab.optim import GSM, cut, keep_masks, param_groups, selection
from gsm_lab.optim.fused import loader
from gsm_lab.optim.ranks import shards
from gsm_lab.optim.ranks.group import agree

HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}


def without_compiled_passes() -> None:
    """The one process is not what is tested: it need not wait until numba has compiled for it."""
    loader.compiled = lambda name: None


@cache
def _cut(shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> Tensor:
    """Which entries of a tensor, as flat positions, torch itself gives to this rank."""
    whole = torch.arange(math.prod(shape)).view(shape)
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor, cut as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return whole.detach().flatten()[_cut(whole.shape, like.device_mesh, like.placements)]


def local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def assert_equal(a: Tensor, b: Tensor) -> None:
    """Equal to the bit."""
    assert a.shape == b.shape and a.dtype == b.dtype
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    assert torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


def give(p: Tensor, grad: Tensor) -> None:
    """Make it the gradient of a tensor: this rank's part of it where that is a DTensor."""
    if isinstance(p, DTensor):
        part = part_of(grad, p)
        grad = DTensor.from_local(part, p.device_mesh, p.placements, shape=grad.shape, stride=grad.stride())
    p.grad = grad


@contextmanager
def counting() -> Iterator[list[int]]:
    """The bytes of each all-reduce in its block."""
    sent, real = [], dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield sent
    finally:
        dist.all_reduce = real


def assert_same(sharded: list[Tensor], gsm: GSM, whole: list[Tensor], one: GSM) -> None:
    """Weights, momentum, active sets and numbers of the sharded optimizer are those of the one process."""
    numbers = [(opt.threshold, opt.nonzeros, opt.weights) for opt in (gsm, one)]
    assert numbers[0] == numbers[1] or np.array_equal(*numbers, equal_nan=True), numbers
    for p, w in zip(sharded, whole, strict=True):
        assert_equal(local(p.detach()), part_of(w.detach(), p))
        momentum = gsm.state[p].get("momentum_buffer")
        if momentum is not None:
            assert isinstance(momentum, DTensor) == isinstance(p, DTensor) and momentum.shape == p.shape
            assert_equal(local(momentum), part_of(one.state[w]["momentum_buffer"], p))
        if p.ndim >= 2:
            active = gsm.active(p)
            assert isinstance(active, DTensor) == isinstance(p, DTensor) and active.shape == p.shape
            assert torch.equal(local(active), part_of(one.active(w), p))


def lenet_follows_one_process(steps: int, kernel: dict[str, bool]) -> dict[str, Any]:
    """LeNet-300-100 under FSDP2, given the gradients that one process is given; returns the bytes of messages."""
    torch.manual_seed(0)
    whole = models.lenet300()
    model = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.fc1, model.fc2, model.fc3):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    one, gsm = (GSM(param_groups(m), **HYPER, **kernel, compression=60) for m in (whole, model))
    random = torch.Generator().manual_seed(1)
    sent = []
    for _ in range(steps):
        for p, w in zip(model.parameters(), whole.parameters(), strict=True):
            w.grad = torch.randn(w.shape, generator=random)
            give(p, w.grad)
        given = [(p.grad, local(p.grad).clone()) for p in model.parameters()]
        with counting() as messages:
            gsm.step()
        one.step()
        sent.append(messages)
        assert all(p.grad is g for p, (g, _) in zip(model.parameters(), given, strict=True))
        assert all(torch.equal(local(g), before) for g, before in given)
        assert_same(list(model.parameters()), gsm, list(whole.parameters()), one)
    active = int(gsm.active_mask().sum())
    return {"messages": sent[0], "usual": mode(map(tuple, sent)), "most": max(map(sum, sent)), "active": active}


def a_copy_goes_on() -> None:
    """A network under FSDP2 and its optimizer, copied between two steps: the copy says and does what they do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    gsm = GSM(param_groups(model), **HYPER, compression=5)
    random = torch.Generator().manual_seed(1)

    def step(*optimizers: GSM) -> None:
        for group in zip(*(g["params"] for opt in optimizers for g in opt.param_groups[:1]), strict=True):
            grad = torch.randn(group[0].shape, generator=random)
            for p in group:
                give(p, grad)
        for opt in optimizers:
            opt.step()

    step(gsm)
    size = len(gsm.active_mask())
    gsm.candidates = torch.arange(size) % 3 > 0
    step(gsm)
    other = copy.deepcopy(gsm)
    assert torch.equal(other.active_mask(), gsm.active_mask()) and other.threshold == gsm.threshold > 0
    assert torch.equal(other.candidates, gsm.candidates)
    for _ in range(3):
        step(gsm, other)
        assert torch.equal(other.active_mask(), gsm.active_mask()) and other.threshold == gsm.threshold
        assert not (other.active_mask() & ~other.candidates).any()
    pairs = [
        zip(a["params"], b["params"], strict=True) for a, b in zip(gsm.param_groups, other.param_groups, strict=True)
    ]
    for p, q in (pair for its in pairs for pair in its):
        assert p is not q
        assert_equal(local(p.detach()), local(q.detach()))


# ------------------------------------------------------------------------------------------------ ways of placing

SHAPES = [(7, 5), (6,), (3, 4, 2), (1, 9), (10, 3), (4,)]  # fewer rows than ranks, uneven, two biases
FLAT = {
    "rows": lambda i, ndim: [Shard(0)],
    "columns": lambda i, ndim: [Shard(min(1, ndim - 1))],
    "copies": lambda i, ndim: [Replicate()],
    "all three": lambda i, ndim: [[Shard(0)], [Replicate()], [Shard(ndim - 1)]][i % 3],
    "with plain tensors": lambda i, ndim: [Shard(0)] if i % 3 else None,
}
SQUARE = {
    "HSDP": lambda i, ndim: [Replicate(), Shard(0)],
    "rows and columns": lambda i, ndim: [Shard(0), Shard(1) if ndim > 1 else Replicate()],
    "rows twice": lambda i, ndim: [Shard(0), Shard(0)],
    "in strides": lambda i, ndim: [_StridedShard(0, split_factor=2), Shard(0)],
    "on several meshes": lambda i, ndim: [([Shard(0), Shard(0)], "ab"), ([Shard(0)], "a"), ([Replicate()], "b")][i % 3],
}


@cache
def meshes() -> dict[str, DeviceMesh]:
    size = dist.get_world_size()
    found = {"flat": init_device_mesh("cpu", (size,))}
    if size == 4:
        found["ab"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        found.update({name: found["ab"][name] for name in "ab"})
    return found


def placed(kind: str, i: int, whole: Tensor) -> Tensor:
    """This rank's part of tensor number i of a model."""
    mesh, placements = ("flat", FLAT[kind](i, whole.ndim)) if kind in FLAT else ("ab", SQUARE[kind](i, whole.ndim))
    if placements is None:
        return whole.clone()
    if isinstance(placements, tuple):
        placements, mesh = placements
    return distribute_tensor(whole.clone(), meshes()[mesh], placements, src_data_rank=None)


def positions(kind: str) -> None:
    """`Part.positions` are those that torch gives the entries when it cuts a tensor of positions."""
    starts = accumulate(math.prod(shape) for shape in SHAPES)
    wholes = [torch.arange(end - math.prod(s), end).view(s) for s, end in zip(SHAPES, starts, strict=True)]
    tensors = [placed(kind, i, whole) for i, whole in enumerate(wholes)]
    parts, ranks = shards.lay_out(tensors, (), str)
    counted = torch.zeros(sum(map(math.prod, SHAPES)), dtype=torch.int64)
    for part, x in zip(parts, tensors, strict=True):
        assert part.shape == local(x).shape
        if local(x).numel():
            assert part.positions(np.arange(local(x).numel())).tolist() == local(x).flatten().tolist()
        if part.counted:
            counted[local(x).flatten()] += 1
    assert (ranks.sum(counted) == 1).all()


def contents(name: str, random: torch.Generator, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A weight and a gradient of a kind."""
    w, g = torch.randn(2, *shape, generator=random)
    if name == "constant":
        w, g = torch.full(shape, -0.5), torch.full(shape, 2.0)
    elif name == "95% zero":
        g[torch.rand(shape, generator=random) < 0.95] = 0
    elif name == "zero":
        g = torch.zeros(shape)
    elif name == "denormal":
        g = g * 1e-41
    elif name == "tied":
        w, g = w.round(), g.round()
    elif name == "bfloat16":
        w, g = w.bfloat16(), (4 * g).round().bfloat16()
    elif name == "overflow":
        w, g = w * 1e20, g * 1e20
    elif name == "weights of NaN":
        w[torch.rand(shape, generator=random) < 0.3] = torch.nan
    return w, g


CONTENTS = ("random", "constant", "95% zero", "zero", "denormal", "tied", "overflow", "weights of NaN")
WAYS = {
    "default": HYPER,
    "foreach": {**HYPER, "foreach": True},
    "nesterov": {**HYPER, "foreach": True, "nesterov": True},
    "maximize": {"lr": 0.1, "maximize": True},
}


def follow_one_process(kind: str, name: str, way: str = "default", shapes: list[tuple[int, ...]] = SHAPES) -> int:
    """Tensors placed in a way, against one process that has all of them, at several Q; returns the steps compared."""
    random, steps = torch.Generator().manual_seed(len(kind) + len(name)), 0
    n = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    for q in (1, n // 3, n - 1, n):
        start = [contents(name, random, shape) for shape in shapes]
        whole = [nn.Parameter(w) for w, _ in start]
        sharded = [nn.Parameter(placed(kind, i, w)) for i, (w, _) in enumerate(start)]
        one, gsm = (GSM(tensors, **WAYS[way], nonzeros=q) for tensors in (whole, sharded))
        for step in range(3):
            for i, (p, w, shape) in enumerate(zip(sharded, whole, shapes, strict=True)):
                if step == 1 and i == 2:  # a gradient that is not there
                    p.grad = w.grad = None
                    continue
                w.grad = contents(name, random, shape)[1]
                give(p, w.grad)
            with counting() as sent:
                gsm.step()
            one.step()
            assert sum(sent) <= 64 * 1024
            assert_same(sharded, gsm, whole, one)
            joined = [part_of(one.active(w), p).flatten() for p, w in zip(sharded, whole, strict=True) if w.ndim > 1]
            assert torch.equal(gsm.active_mask(), torch.cat(joined))
            steps += 1
    return steps


def follow_masked_sgd(kind: str, name: str, **kernel: bool) -> None:
    """Where torch's kernels round the last entries of a tensor differently (fused, bfloat16), the whole and its parts
    cannot be equal to the bit: here the active set is that of the gathered weights, and SGD steps the same parts."""
    random = torch.Generator().manual_seed(5)
    start = [contents(name, random, shape) for shape in SHAPES]
    sharded = [nn.Parameter(placed(kind, i, w)) for i, (w, _) in enumerate(start)]
    parts = [nn.Parameter(local(p.detach()).clone()) for p in sharded]
    gsm, sgd = GSM(sharded, **HYPER, **kernel, nonzeros=20), torch.optim.SGD(parts, **HYPER, **kernel)
    for _ in range(5):
        grads = [contents(name, random, shape)[1] for shape in SHAPES]
        wholes = [p.full_tensor() if isinstance(p, DTensor) else p for p in sharded]
        pairs = [(w, g) for w, g in zip(wholes, grads, strict=True) if w.ndim > 1]
        metric = torch.cat([(w.detach().float() * g.float()).abs().flatten() for w, g in pairs]).numpy()
        chosen = torch.from_numpy(selection.chosen(metric, selection.top_q(metric, 20)))
        masks = iter(chosen.split([g.numel() for _, g in pairs]))
        for p, part, g in zip(sharded, parts, grads, strict=True):
            give(p, g)
            part.grad = part_of(g * next(masks).view(g.shape) if g.ndim > 1 else g, p).clone()
        gsm.step()
        sgd.step()
        for p, part in zip(sharded, parts, strict=True):
            assert_equal(local(p.detach()), part.detach())
            assert_equal(local(gsm.state[p]["momentum_buffer"]), sgd.state[part]["momentum_buffer"])


def cut_as_one_process(kind: str) -> None:
    for name in ("random", "constant", "95% zero", "bfloat16"):
        random = torch.Generator().manual_seed(2)
        start = [contents(name, random, shape)[1 if name == "95% zero" else 0] for shape in SHAPES]
        whole, sharded = nn.ParameterList(start), nn.ParameterList(placed(kind, i, w) for i, w in enumerate(start))
        for compression in (1, 4):
            masks, expected = (keep_masks(model, compression, include="*") for model in (sharded, whole))
            for key, p in sharded.named_parameters():
                if p.ndim > 1:
                    assert masks[key].shape == p.shape and torch.equal(local(masks[key]), part_of(expected[key], p))
            kept = cut(sharded, compression, include="*")
            assert kept == cut(whole, compression, include="*")
            for p, w in zip(sharded, whole, strict=True):
                assert_equal(local(p.detach()), part_of(w.detach(), p))


# ------------------------------------------------------------------------------------------------ what may go wrong


def model_in_rows(**settings: Any) -> tuple[list[Tensor], GSM]:
    """A sharded model in which all gradients are there."""
    random = torch.Generator().manual_seed(3)
    start = [contents("random", random, shape) for shape in SHAPES]
    tensors = [nn.Parameter(placed("rows", i, w)) for i, (w, _) in enumerate(start)]
    for p, (_, g) in zip(tensors, start, strict=True):
        give(p, g)
    names = {"names": [f"tensor{i}" for i in range(len(tensors))]}
    return tensors, GSM([{"params": tensors, **names}], **HYPER, **settings)


def refused(tensors: list[Tensor], gsm: GSM) -> tuple[str, str]:
    """How a step fails, and that it changes nothing."""
    before = [local(p.detach()).clone() for p in tensors]
    try:
        gsm.step()
    except Exception as error:
        for p, x in zip(tensors, before, strict=True):
            assert_equal(local(p.detach()), x)
        assert not gsm.active_mask().any() and gsm.threshold == 0 and not gsm.state
        return type(error).__name__, str(error)
    raise AssertionError("the step went through")


def bad_gradient(tensor: int, value: float, compression: float) -> tuple[str, str]:
    """A gradient that is not finite on the last rank that has entries of the tensor; later steps are good again."""
    tensors, gsm = model_in_rows(compression=compression)
    rows = [len(local(p.grad)) for p in tensors]
    last = math.ceil(SHAPES[tensor][0] / math.ceil(SHAPES[tensor][0] / dist.get_world_size())) - 1
    good = local(tensors[tensor].grad).clone()
    if dist.get_rank() == last:
        assert rows[tensor]
        local(tensors[tensor].grad)[-1] = value
    said = refused(tensors, gsm)
    local(tensors[tensor].grad).copy_(good)
    gsm.step()
    assert gsm.active_mask().any() or not gsm.active_mask().numel() or compression > 1
    return said


def bad_copy() -> tuple[str, str]:
    """A gradient is not finite in a copy that does not count."""
    tensors = [nn.Parameter(placed("copies", 0, torch.ones(3, 4)))]
    gsm = GSM(tensors, **HYPER, compression=4)
    give(tensors[0], torch.full((3, 4), torch.inf if dist.get_rank() == 1 else 1.0))
    return refused(tensors, gsm)


def different_compression(compressions: list[float]) -> tuple[str, str]:
    tensors, gsm = model_in_rows(compression=compressions[dist.get_rank()])
    said = refused(tensors, gsm)
    gsm.compression = 3
    gsm.step()
    return said


def different_models() -> tuple[str, str]:
    tensors, gsm = model_in_rows(nonzeros=10)
    if dist.get_rank() == 0:
        gsm.add_param_group({"params": [nn.Parameter(placed("rows", 0, torch.ones(4, 4)))]})
    return refused(tensors, gsm)


def nothing_to_prune_on_one_rank() -> None:
    """Rank 1 has only biases: it takes part, and the others' active set is that of their model."""
    random = torch.Generator().manual_seed(3)
    w, b = torch.randn(8, 3, generator=random), torch.randn(8, generator=random)
    whole = [nn.Parameter(w.clone()), nn.Parameter(b.clone())]
    tensors = [nn.Parameter(placed("copies", 0, x)) for x in (w, b)]
    one, gsm = GSM(whole, **HYPER, nonzeros=5), GSM(tensors[dist.get_rank() == 1 :], **HYPER, compression=24 / 5)
    for _ in range(3):
        for p, x in zip(tensors, whole, strict=True):
            x.grad = torch.randn(x.shape, generator=random).round()
            give(p, x.grad)
        gsm.step()
        one.step()
        assert gsm.threshold == one.threshold
        for p, x in list(zip(tensors, whole, strict=True))[dist.get_rank() == 1 :]:
            assert_equal(local(p.detach()), x.detach())
    assert gsm.weights == (0 if dist.get_rank() == 1 else 24)


def partial_sums() -> str:
    p = nn.Parameter(DTensor.from_local(torch.ones(3, 3), meshes()["flat"], [Partial()]))
    try:
        GSM([{"params": [p], "names": ["layer.weight"]}], lr=0.1, compression=2)
    except ValueError as error:
        return str(error)
    raise AssertionError("accepted")


def partial_gradients() -> None:
    """Gradients that are sums over ranks still to be made are made before the gate looks at them."""
    p = nn.Parameter(distribute_tensor(torch.ones(6, 3), meshes()["flat"], [Replicate()], src_data_rank=None))
    whole = nn.Parameter(torch.ones(6, 3))
    addend = torch.arange(18.0).view(6, 3)
    p.grad = DTensor.from_local(addend * (dist.get_rank() + 1), meshes()["flat"], [Partial()])
    whole.grad = addend * sum(range(1, dist.get_world_size() + 1))
    one, gsm = GSM([whole], lr=0.1, nonzeros=5), GSM([p], lr=0.1, nonzeros=5)
    one.step()
    gsm.step()
    assert_same([p], gsm, [whole], one)


def candidates() -> None:
    """Entries that are no candidates on their rank stay out, and the others take their places."""
    _, gsm = model_in_rows(nonzeros=20)
    for bad in (torch.ones(gsm.weights, dtype=torch.bool), torch.ones(len(gsm.active_mask()))):
        try:
            gsm.candidates = bad
        except ValueError as error:
            assert f"({len(gsm.active_mask())},)" in str(error)
        else:
            raise AssertionError("accepted")
    allowed = torch.rand(len(gsm.active_mask())) < 0.5
    gsm.candidates = allowed
    gsm.step()
    active = torch.tensor([int(gsm.active_mask().sum())])
    assert not (gsm.active_mask() & ~allowed).any()
    dist.all_reduce(active)
    assert active == 20


def sent_in_a_step() -> list[int]:
    """The bytes that a step sends; the result is that of one process."""
    tensors, gsm = model_in_rows(nonzeros=20)
    whole = [nn.Parameter(p.full_tensor().detach()) for p in tensors]
    for p, w in zip(tensors, whole, strict=True):
        w.grad = p.grad.full_tensor()
    with counting() as sent:
        gsm.step()
    one = GSM(whole, **HYPER, nonzeros=20)
    one.step()
    assert_same(tensors, gsm, whole, one)
    return sent


def dies() -> tuple[str, str]:
    """Rank 1 dies before the exchange."""
    tensors, gsm = model_in_rows(compression=5)
    if dist.get_rank() == 1:
        os._exit(1)
    return refused(tensors, gsm)


def hangs(seconds: float) -> tuple[str, str] | None:
    """Rank 1 takes no part in an exchange of a group with this time-out; the optimizer can still be saved."""
    group = dist.new_group(timeout=timedelta(seconds=seconds))
    mesh = DeviceMesh.from_group(group, "cpu")
    p = nn.Parameter(distribute_tensor(torch.ones(6, 3), mesh, [Shard(0)], src_data_rank=None))
    give(p, torch.ones(6, 3))
    gsm = GSM([p], **HYPER, compression=3)
    if dist.get_rank() == 1:
        return None
    said = refused([p], gsm)
    assert gsm.state_dict()["param_groups"][0]["compression"] == 3
    return said


# ------------------------------------------------------------------------------------------------ real training


def trained(steps: int, mesh: str = "flat") -> float:
    """FSDP2 with its own gradients: after each step what one process does with those; returns how far the loss fell."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(12, 17), nn.Tanh(), nn.Linear(17, 5))
    model = copy.deepcopy(whole)
    for layer in (*model, model):
        if not isinstance(layer, nn.Tanh):
            fully_shard(layer, mesh=meshes()[mesh])
    one, gsm = (GSM(param_groups(m), **HYPER, compression=7) for m in (whole, model))
    random = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(steps):
        x = torch.randn(20, 12, generator=random)
        loss = cross_entropy(model(x), x[:, :5].argmax(1))
        gsm.zero_grad()
        loss.backward()
        for p, w in zip(model.parameters(), whole.parameters(), strict=True):
            w.grad = p.grad.full_tensor()
        gsm.step()
        one.step()
        losses.append(loss.item())
        assert_same(list(model.parameters()), gsm, list(whole.parameters()), one)
    return sum(losses[-5:]) / sum(losses[:5])


def fsdp_over_tensor_parallel() -> set[str]:
    """FSDP2 over tensor parallelism with torch's own parts; returns the placements met."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6), nn.Linear(6, 3))
    model = copy.deepcopy(whole)
    parallelize_module(model, meshes()["b"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=meshes()["a"])
    one, gsm = (GSM(param_groups(m), **HYPER, compression=4) for m in (whole, model))
    random = torch.Generator().manual_seed(dist.get_rank() // 2)
    for _ in range(5):
        gsm.zero_grad()
        cross_entropy(model(torch.randn(16, 8, generator=random)), torch.arange(16) % 3).backward()
        for p, w in zip(model.parameters(), whole.parameters(), strict=True):
            w.grad = p.grad.full_tensor()
        gsm.step()
        one.step()
        assert_same(list(model.parameters()), gsm, list(whole.parameters()), one)
    return {str(p.placements) for p in model.parameters()}


def ddp(steps: int) -> list[list[int]]:
    """A small net under DDP: the active set of each step. `step` asks the group nothing."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)))
    gsm = GSM(param_groups(model.module), **HYPER, compression=9)
    agree(gsm)
    random, group = torch.Generator().manual_seed(dist.get_rank()), dist.group.WORLD
    sets = []
    for _ in range(steps):
        gsm.zero_grad()
        before = group._get_sequence_number_for_group()
        cross_entropy(model(torch.randn(10, 12, generator=random)), torch.arange(10) % 5).backward()
        between = group._get_sequence_number_for_group()
        with counting() as sent:
            gsm.step()
        assert before < between == group._get_sequence_number_for_group() and not sent
        sets.append(gsm.active_mask().nonzero().flatten().tolist())
    return sets


def disagreement(settings: list[dict[str, Any]]) -> str | None:
    """What `agree` says where ranks have these settings."""
    try:
        agree(GSM(nn.Linear(4, 3).parameters(), **settings[dist.get_rank()]))
    except ValueError as error:
        return str(error)
    return None


def checkpointed(folder: str, load: bool) -> dict[str, Any]:
    """Saves a model and its optimizer after some steps, or loads them; returns them whole."""
    torch.manual_seed(1 if load else 0)
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5))
    fully_shard(model, mesh=meshes()["flat"])
    gsm = GSM(param_groups(model), **HYPER, compression=2 if load else 6)
    if not load:
        for _ in range(3):
            for p in model.parameters():
                give(p, torch.ones(p.shape).cumsum(0))
            gsm.step()
    state = dict(zip(("model", "optimizer"), get_state_dict(model, gsm), strict=True))
    if load:
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, gsm, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    else:
        dcp.save(state, checkpoint_id=folder)
    momenta = [gsm.state[p]["momentum_buffer"].full_tensor().tolist() for p in model.parameters()]
    weights = [p.full_tensor().tolist() for p in model.parameters()]
    return {"compression": gsm.compression, "nonzeros": gsm.nonzeros, "momenta": momenta, "weights": weights}
