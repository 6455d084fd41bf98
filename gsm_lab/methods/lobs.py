"""Layer-wise optimal brain surgeon, L-OBS (Dong, Chen and Pan, NeurIPS 2017).

Each layer is pruned so that its output before the activation changes least, in the mean square over training samples.
With H the mean of x x^T over the layer's inputs x, which all its units share, taking out weight q of a unit costs at
least, and is made up for by (their equations 5 and 6)

    L_q = w_q^2 / (2 [H^-1]_qq),        dw = - w_q / [H^-1]_qq * H^-1 e_q.

Weights are ranked by L_q of the trained layer, in closed form. Where they remove one after the other with the inverse
of the whole layer, here what is left of a unit is solved for at once, w_S = H_SS^-1 (H w)_S: exact for any set. Layers
are made comparable by the mean square of their own output, so one budget serves all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsm_lab.knobs import Knob
from gsm_lab.methods.base import ROUNDS, UNTIL, Rival
from gsm_lab.training.fitting import evaluating
from gsm_lab.training.outputs import answer
from gsm_lab.training.parts import Parts
from gsm_lab.training.threads import one_thread

_STREAM = 0x10B5
_AT_ONCE = 500  # samples; bounds memory


class LOBS(Rival):
    """Rounds of taking out the weights of smallest layer-wise error, making up for them, and retraining."""

    name = "lobs"
    options = (
        Knob("samples", 5000, "training samples that H is measured on", False, least=1, most=10**9),
        Knob("damping", 1e-3, "share of its mean diagonal that is added to H", False, least=1e-9, most=1),
        ROUNDS,
        UNTIL,
    )  # fmt: skip

    def start(self, run: Parts) -> None:
        """Look for the layers' modules. Raises ValueError for a layer that is none of a kind with a closed form."""
        super().start(run)
        self.modules = layers(run.model, list(run.history.layers))

    @torch.no_grad()
    def before_step(self, run: Parts) -> None:
        """In a round, take weights out and make up for them."""
        q = self.round_due(run)
        if not q:
            return
        second = self.moments(run)
        with one_thread():  # two spin until both have done their part: on a busy machine it takes 100 times as long
            costs = [error(_rows(p), h) / output(_rows(p), h) for p, h in zip(run.tensors, second, strict=True)]
            inside = self.best(run, run.flat(costs) * self.inside, q)
            for p, h, mask in zip(run.tensors, second, run.shaped(inside), strict=True):
                made_up = restricted(_rows(p), h, mask.reshape(len(p), -1))
                p.copy_(made_up.view(p.shape))
        self.keep(run, inside)

    def moments(self, run: Parts) -> list[Tensor]:
        """H of each layer, float64 [inputs of a unit, the same], damped."""
        drawn = torch.Generator().manual_seed(run.settings.seed ^ _STREAM)
        rows = torch.randperm(len(run.data.train_y), generator=drawn)[: run.options["samples"]]
        sums: dict[int, Tensor] = {}
        counts = [0] * len(self.modules)
        layer = {module: i for i, users in enumerate(self.modules) for module in users}

        def look(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            x, i = inputs(module, args[0] if args else named["input"]).double(), layer[module]
            sums[i] = sums.get(i, 0) + x.T @ x
            counts[i] += len(x)

        hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in layer]
        try:
            with evaluating(run.model):
                for part in rows.to(run.data.train_x.device).split(_AT_ONCE):
                    answer(run.model, run.data.train_x[part], run.output)
        finally:
            for hook in hooks:
                hook.remove()
        for name, count in zip(run.history.layers, counts, strict=True):
            if not count:
                raise ValueError(f"lobs sees no inputs of layer {name!r}: the model does not call its module")
        found = [sums[i] / count for i, count in enumerate(counts)]
        for h in found:
            h.diagonal().add_(run.options["damping"] * h.diagonal().mean().clamp_min(1e-12))
        return found


def layers(model: nn.Module, names: list[str]) -> list[list[nn.Module]]:
    """For each prunable tensor, by name, the modules that have it: several where it is tied.

    Raises ValueError for a module that is no plain Linear or Conv2d.
    """
    found = []
    for name in names:
        weight = model.get_parameter(name)
        users = [m for m in model.modules() if any(p is weight for p in m.parameters(recurse=False))]
        for module in users:
            plain = type(module) is nn.Linear or (
                type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
            )
            if not plain:
                raise ValueError(f"lobs takes plain Linear and Conv2d layers; {name!r} is in a {type(module).__name__}")
        found.append(users)
    return found


def inputs(module: nn.Module, x: Tensor) -> Tensor:
    """What the units of a layer see: [samples (times places), inputs of a unit]."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    padded = F.pad(x, module._reversed_padding_repeated_twice)  # also for "same", which unfold does not know
    patches = F.unfold(padded, module.kernel_size, module.dilation, stride=module.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def error(w: Tensor, h: Tensor) -> Tensor:
    """L_q of every weight: float64, of the shape of `w` [units, inputs]; `h` [inputs, inputs] positive definite."""
    inverse = torch.linalg.inv(h)
    return w.square() / (2 * inverse.diagonal())


def output(w: Tensor, h: Tensor) -> Tensor:
    """Half the mean square of the layer's output, summed over units: a scalar, at least the smallest float64 > 0."""
    return 0.5 * ((w @ h) * w).sum().clamp_min(torch.finfo(torch.float64).tiny)


def restricted(w: Tensor, h: Tensor, mask: Tensor) -> Tensor:
    """For each unit the weights inside `mask` whose output comes closest to that of `w`: float64 [units, inputs]."""
    result, wanted = torch.zeros_like(w), w @ h
    for row, (inside, target) in enumerate(zip(mask, wanted, strict=True)):
        s = inside.nonzero()[:, 0]
        if len(s):
            result[row, s] = torch.linalg.solve(h[s][:, s], target[s])
    return result


def _rows(p: Tensor) -> Tensor:
    return p.detach().double().reshape(len(p), -1)
