"""Other libraries' own ways to train, with GSM as their optimizer; `pip install '.[clients]'` brings them.

Each module skips itself where its library is not there; tests/test_setup.py holds that CI has all of them.
"""

import importlib.util
import os
from pathlib import Path

# None of them asks anybody anything.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared = []  # what a library of operators declared is gone when the library is


def _have_torchvision() -> None:
    """Let torchvision be imported where its compiled operators do not load, as beside a PyTorch without CUDA.

    timm and transformers import it, and it describes two of its operators to PyTorch that are not there then. They are
    declared here, not defined: whoever calls one is told.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return
    import torch

    try:
        for path in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(path)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        _declared.append(library)
        for operator in _OPERATORS:
            library.define(operator)


_have_torchvision()
