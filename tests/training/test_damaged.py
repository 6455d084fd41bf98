"""Files that are damaged, of another model, or not as a run writes them, are refused in a sentence."""

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import gsm_lab
from gsm_lab import Run
from gsm_lab.training import checkpoint
from gsm_lab.training.checkpoint import FILE, CheckpointError
from tests.runs import Net, differs, everything, mine, net

# ------------------------------------------------------------------------------------------------ to the bit


def own_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def with_own_loss() -> Run:
    return Run(net(), mine(), loss=own_loss, batch_size=8, pretrain=0, compression=4, epochs=6)


# ------------------------------------------------------------------------------------------------ damaged


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        Run.resume(folder, net(), mine())
    chain = error.value.__cause__, error.value.__suppress_context__ or error.value.__context__ is None
    assert chain == (None, True), "shown to a reader, it must be one error, not two"
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = (saved / FILE).read_bytes()
    (saved / FILE).write_bytes(content[: math.floor(share * len(content))])
    refused(saved, "is damaged")


def test_a_file_with_a_byte_too_few_or_too_many_is_refused(saved: Path) -> None:
    content = (saved / FILE).read_bytes()
    for other in (content[:-1], content + b"\0"):
        (saved / FILE).write_bytes(other)
        refused(saved, "is damaged")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_noticed(saved: Path, data: st.DataObject) -> None:
    good = saved.with_name("good")
    if not good.exists():
        good.write_bytes((saved / FILE).read_bytes())
    content = bytearray(good.read_bytes())
    head = 8 + struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.one_of(st.integers(0, head - 1), st.integers(head, len(content) - 1)))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != content[place]))
    was, content[place] = content[place], byte
    (saved / FILE).write_bytes(content)
    try:
        run = Run.resume(saved, net(), mine())
    except CheckpointError as error:
        assert "is damaged" in str(error)
        return
    assert place < head and chr(was).isspace() and chr(byte).isspace(), "only padding may change unnoticed"
    assert run.steps == 12


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not a checkpoint" * 100, b"\xff" * 64, b"PK\x03\x04" + bytes(200), b"\x80\x04." * 9]
)
def test_what_is_no_safetensors_file_is_refused(saved: Path, content: bytes) -> None:
    (saved / FILE).write_bytes(content)
    refused(saved, "is damaged")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"gsm_lab": "{}"}, {"sha256": "0" * 64}])
def test_a_safetensors_file_of_somebody_else_is_refused(saved: Path, metadata: dict[str, str] | None) -> None:
    save_file({"model/fc1.weight": torch.ones(3)}, saved / FILE, metadata)
    refused(saved, "damaged or not a run of gsm_lab: its content does not match its checksum")


@pytest.mark.parametrize("version", [0, 2, None])
def test_another_format_is_refused(saved: Path, version: int | None) -> None:
    tensors = load_file(saved / FILE)
    text = json.dumps({"version": version})
    save_file(tensors, saved / FILE, {"gsm_lab": text, "sha256": checkpoint.digest(tensors, text)})
    refused(saved, f"has format {version}; this gsm_lab reads format {checkpoint.VERSION}")


def test_the_checksum_by_hand() -> None:
    tensors = {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor(True), "c": torch.empty(0)}
    text = b"headera torch.bool ()\x01b torch.int16 (1, 2)\x01\x00\x02\x00c torch.float32 (0,)"
    assert checkpoint.digest(tensors, "header") == hashlib.sha256(text).hexdigest()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, f"there is no run in .*: {FILE} is missing")
    refused(tmp_path / "nowhere", "there is no run in")
    (tmp_path / FILE).mkdir()
    refused(tmp_path, "there is no run in")


def test_checkpoint_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)


# ------------------------------------------------------------------------------------------------ another model or data


def test_ones_own_has_to_be_given_again(tmp_path: Path) -> None:
    folder = with_own_loss().save(tmp_path)
    for arguments, message in (
        (
            (None, mine(), own_loss),
            r"the model of .* \(Net, not one of gsm_lab's\); give it again: resume\(\.\.\., model=\.\.\.\)",
        ),
        ((net(), None, own_loss), r"the data of .* \(corners, not .*; give it again: resume\(\.\.\., data=\.\.\.\)"),
        ((net(), mine()), r"the loss of .* \(own_loss, not .*; give it again: resume\(\.\.\., loss=\.\.\.\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Run.resume(folder, *arguments)


def test_a_loss_without_a_name(tmp_path: Path) -> None:
    run = Run(net(), mine(), loss=nn.MultiMarginLoss(), batch_size=8)
    run.save(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"the loss of the run in .* is not in it \(MultiMarginLoss, not one of gsm_lab's\)"
    ):
        Run.resume(tmp_path, net(), mine())


def test_other_data_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was trained on other data: digest \w{16}, this 'corners' has \w{16}"):
        Run.resume(saved, net(), mine(seed=1))


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 5)


class Renamed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = self.head
        del self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.body(x)))


class Unbiased(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4, bias=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wider, "has another model: its prunable layers are"),
        (Renamed, "has another model"),
        (Unbiased, "do not fit the model"),
    ],
)
def test_another_model_is_refused(saved: Path, model: type[nn.Module], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        Run.resume(saved, model(), mine())
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_a_named_model_may_be_given_as_a_module(tmp_path: Path) -> None:
    run = Run(data=mine(), batch_size=8, pretrain=0, compression=10)
    run.step(4)
    again = Run.resume(run.save(tmp_path), gsm_lab.models.lenet300((8,), 4), mine())
    for r in (run, again):
        r.step(4)
    assert differs(everything(run), everything(again), ignore=("knobs",)) == []
    again.reset()


# ------------------------------------------------------------------------------------------------ not as expected


def written(folder: Path, plain: object, tensors: dict[str, Tensor]) -> None:
    """A checkpoint with the right checksum, whatever is in it."""
    text = plain if isinstance(plain, str) else json.dumps(plain)
    save_file(tensors, folder / FILE, {"gsm_lab": text, "sha256": checkpoint.digest(tensors, text)})


def without(plain: dict, name: str) -> dict:
    return {key: value for key, value in plain.items() if key != name}


PLAIN = {
    "null": lambda p: "null",
    "a list": lambda p: [p],
    "no JSON": lambda p: "{",
    "deep": lambda p: "[" * 100_000,
    "NaN": lambda p: json.dumps(p | {"base": math.nan}),
    "infinite": lambda p: json.dumps(p | {"magnitude": math.inf}),
    "accuracy of 7": lambda p: p | {"base": 7.0},
    "steps a list": lambda p: p | {"steps": [1]},
    "steps true": lambda p: p | {"steps": True},
    "steps beyond all": lambda p: p | {"steps": 10**400},
    "a number of 5,000 digits": lambda p: json.dumps(p).replace('"steps": 12', '"steps": ' + "1" * 5000),
    "steps below 0": lambda p: p | {"dense_steps": -1},
    "steps half": lambda p: p | {"steps": 1.5},
    "given null": lambda p: p | {"given": None},
    "given what is no knob": lambda p: p | {"given": {"wings": 2}},
    "knobs without lr's sense": lambda p: p | {"knobs": p["knobs"] | {"lr": "fast"}},
    "a knob that is not known": lambda p: p | {"knobs": p["knobs"] | {"wings": 2}},
    "knobs without a model": lambda p: p | {"knobs": without(p["knobs"], "model")},
    "another model by name": lambda p: p | {"own_model": None, "knobs": p["knobs"] | {"model": "vgg"}},
    "options": lambda p: p | {"options": {"wings": 2}},
    "options a list": lambda p: p | {"options": [1]},
    "method a number": lambda p: p | {"method": 3},
    "layers a list": lambda p: p | {"history": p["history"] | {"layers": [1]}},
    "events null": lambda p: p | {"history": p["history"] | {"events": None}},
    "an event that is none": lambda p: p | {"history": p["history"] | {"events": [{"step": 0}]}},
    "a knob moved to text": lambda p: (
        p | {"history": p["history"] | {"events": [{"step": 0, "knob": "lr", "old": None, "new": "x"}]}}
    ),
    "every 0": lambda p: p | {"history": p["history"] | {"steps": {"every": 0, "seen": 12}}},
    "seen too little": lambda p: p | {"history": p["history"] | {"steps": {"every": 1, "seen": 3}}},
} | {f"no {name}": lambda p, name=name: without(p, name) for name in ("knobs", "given", "history", "steps", "base")}


@pytest.mark.parametrize("case", PLAIN)
def test_a_header_that_is_not_as_expected_is_refused(saved: Path, case: str) -> None:
    tensors, plain = checkpoint.read_all(saved)
    written(saved, PLAIN[case](plain), tensors)
    model = net(4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        Run.resume(saved, None if "by name" in case else model, mine())
    assert str(saved) in str(error.value) and len(str(error.value)) < 500
    assert all(map(torch.equal, before.values(), model.state_dict().values())), "refused before anything changed"


TENSORS = {
    "history/steps/loss missing": lambda t: without(t, "history/steps/loss"),
    "a row too few": lambda t: t | {"history/steps/loss": t["history/steps/loss"][:-1]},
    "history in float64": lambda t: t | {"history/steps/loss": t["history/steps/loss"].double()},
    "before too short": lambda t: t | {"history/before": t["history/before"][:-1]},
    "momentum/99": lambda t: t | {"momentum/99": torch.zeros(3)},
    "momentum/x": lambda t: t | {"momentum/x": torch.zeros(3)},
    "momentum of another shape": lambda t: t | {"momentum/0": torch.zeros(3)},
    "momentum in whole numbers": lambda t: t | {"momentum/0": t["momentum/0"].int()},
    "another room": lambda t: t | {"attic/0": torch.zeros(3)},
    "no room": lambda t: t | {"attic": torch.zeros(3)},
    "gate": lambda t: t | {"gate/candidates": torch.ones(3, dtype=torch.bool)},
    "gate in numbers": lambda t: t | {"gate/candidates": torch.ones(368)},
    "no generator": lambda t: without(t, "random/run"),
    "a generator's half": lambda t: t | {"random/run": t["random/run"][:40]},
    "a weight missing": lambda t: without(t, "model/head.weight"),
    "a weight too many": lambda t: t | {"model/tail.weight": torch.zeros(3)},
    "weights in float64": lambda t: t | {"model/head.weight": t["model/head.weight"].double()},
    "initial weights of another shape": lambda t: t | {"initial/head.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_as_expected_are_refused(saved: Path, case: str) -> None:
    tensors, plain = checkpoint.read_all(saved)
    written(saved, plain, TENSORS[case](tensors))
    model = net(4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        Run.resume(saved, model, mine())
    assert str(saved) in str(error.value)
    assert all(map(torch.equal, before.values(), model.state_dict().values())), "refused before anything changed"


@pytest.mark.parametrize("method", ["dns", "gates", "admm"])
def test_what_a_method_keeps_is_not_as_expected(tmp_path: Path, method: str) -> None:
    run = gsm_lab.methods.build(method, model=net(), data=mine(), batch_size=8, pretrain=0, compression=4)
    run.step(2)
    run.save(tmp_path)
    tensors, plain = checkpoint.read_all(tmp_path)
    for broken in (
        {name: t for name, t in tensors.items() if not name.startswith("method/")},
        tensors | {name: t[..., :1].contiguous() for name, t in tensors.items() if name.startswith("method/")},
    ):
        written(tmp_path, plain, broken)
        with pytest.raises(CheckpointError, match="is not as expected"):
            gsm_lab.methods.resume(tmp_path, net(), mine())


def test_a_file_without_what_came_later_is_resumed(saved: Path) -> None:
    """As the first versions wrote it."""
    tensors, plain = checkpoint.read_all(saved)
    for name in ("method", "options", "shorn", "beside", "finished"):
        plain = without(plain, name)
    plain["knobs"] = without(plain["knobs"], "cut_at")
    written(saved, plain, tensors)
    assert Run.resume(saved, net(), mine()).steps == 12
