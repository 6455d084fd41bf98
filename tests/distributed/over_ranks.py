"""What the tests of runs over ranks share."""

from pathlib import Path

from gsm_lab import Run, cli, distributed

# What every rank would import for itself, some seconds each time: imported once, before ranks are forked.
PRELOAD = [__name__, "gsm_lab.optim.fused.step", "gsm_lab.train", "sklearn.model_selection", "torch._dynamo"]


ROOT = Path(__file__).parents[2]


KINDS = ("ddp", "fsdp")


SETTINGS = {"pretrain": 1, "epochs": 2, "evaluate_every": 10, "seed": 5}


OWN = {"batch_size": 8, "pretrain": 1, "epochs": 6, "compression": 4.0, "evaluate_every": 7}


STEPS = 12  # of the runs that are compared


LIKE_ONE = 1e-5  # of the losses, as long as two runs pick the same weights but for rounding


TIMEOUT = 600.0  # seconds: far more than anything here takes


def status_of(*line: object) -> int:
    """Of the command line, in this process."""
    try:
        return cli.main([str(part) for part in line])
    except SystemExit as end:
        return end.code


def over(kind: str, *args: object, **settings: object) -> Run:
    return Run(*args, **settings, placement=distributed.kind(kind)())


def resumed(kind: str, folder: Path, *args: object, **own: object) -> Run:
    return Run.resume(folder, *args, **own, placement=distributed.kind(kind)())
