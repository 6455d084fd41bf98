"""`View`: what is left of a network's first layer at one moment, as arrays that can be drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What the inputs of a layer are: pixels of an image, features of a row of data, positions in a kernel, or anything else
# (what another layer gives).
PIXELS, FEATURES, POSITIONS, INPUTS = KINDS = ("pixels", "features", "positions", "inputs")


@dataclass(frozen=True, eq=False)
class View:
    """The first prunable layer of a run, as `gsm_lab.studies.network.look` sees it.

    A weight is *kept* when it is among those that a cut would leave now, the Q largest |w| of the whole model; *active*
    when it got its gradient in the last step; *re-activated* when it did and had not in the step before.

    Attributes:
        step: gated steps so far. dense: whether the dense epochs are not over. compression: C of the full budget.
        layer: name of the layer. kind: what its inputs are, one of `KINDS`.
        inputs: int32 [h, w], how many of the layer's weights at each input are kept, -1 where there is no input (at the
            end of the last row, where a long row of inputs is folded). Channels of a pixel are added up.
        reached, count: at how many inputs a weight is kept, and how many inputs there are.
        units: float32 [k, h, w], weights of the units that are shown, laid out as `inputs`. Where several share a place
            (channels of a pixel), the one of largest magnitude stands for them, and the masks are set if any is.
        kept, active, reactivated: bool [k, h, w].
        shown: int64 [k], which units these are. unit_kept: int64 [k], how many weights of each are kept.
        of_units, alive: how many units the layer has, and in how many of them a weight is kept. A unit is a row of a
            fully-connected layer, and a kernel (one slice of two dimensions) of a convolution.
        weights, layer_kept: how many weights the layer has, and how many of them are kept.
        returned: how many of the layer's weights the last step re-activated; None where nothing is known of a step
            before the last one.
    """

    step: int
    dense: bool
    compression: float
    layer: str
    kind: str
    inputs: np.ndarray
    reached: int
    count: int
    units: np.ndarray
    kept: np.ndarray
    active: np.ndarray
    reactivated: np.ndarray
    shown: np.ndarray
    unit_kept: np.ndarray
    of_units: int
    alive: int
    weights: int
    layer_kept: int
    returned: int | None
