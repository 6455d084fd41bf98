"""Save and resume: straight runs as oracle, a fresh process to resume in, and folders damaged in every way."""

import ast
import hashlib
import json
import math
import os
import pickletools
import signal
import stat
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
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
from tests.test_run import Breaks, Net, Tied, differs, everything, mine, net, tiny

ROOT = Path(__file__).parents[1]


def assert_same(a: Run, b: Run) -> None:
    assert differs(everything(a), everything(b)) == []
    pd.testing.assert_frame_equal(a.history.frame(), b.history.frame(), check_exact=True)
    assert a.given == b.given


def header(path: Path) -> dict:
    """The JSON that a safetensors file begins with, read by hand."""
    content = path.read_bytes()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


# ------------------------------------------------------------------------------------------------ to the bit


def lenet300() -> Run:
    return Run(pretrain=1, evaluate_every=40, seed=6)


def own() -> Run:
    return tiny(net(3), batch_size=16)


def own_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def with_own_loss() -> Run:
    return Run(net(), mine(), loss=own_loss, batch_size=8, pretrain=0, compression=4, epochs=6)


def smoothed() -> Run:
    return tiny(compression=20, smoothing=0.9, ramp=0.4, freeze=0.7)


# name: (the run, what it does before it is saved, how to resume it, what it does after that)
CASES: dict[str, tuple[Callable[[], Run], Callable[[Run], object], Callable[[Path], Run], Callable[[Run], object]]] = {
    "lenet300 on digits, 150 and 150": (
        lenet300,
        lambda run: run.step(150),
        Run.resume,
        lambda run: run.step(150),
    ),
    "knobs moved before, at and after": (
        own,
        lambda run: (run.step(3), run.set(momentum=0.5, lr=0.03), run.step(9), run.set(compression=20, hold=0.2)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.set(compression=10.0), run.step(7), run.set(momentum=0.99), run.step(9)),
    ),
    "in the middle of the dense epochs": (
        own,
        lambda run: (run.set(compression=7.0), run.pretrain(3)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(11),
    ),
    "before the gate closes": (
        own,
        lambda run: run.pretrain(4),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.pretrain(), run.step(2)),
    ),
    "when the gate has closed": (
        own,
        lambda run: run.pretrain(),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(12),
    ),
    "before anything": (
        own,
        lambda run: None,
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(12),
    ),
    "tied weights": (
        lambda: tiny(Tied(), compression=3),
        lambda run: run.step(10),
        lambda folder: Run.resume(folder, Tied(), mine()),
        lambda run: run.step(10),
    ),
    "a loss of its own": (
        with_own_loss,
        lambda run: run.step(10),
        lambda folder: Run.resume(folder, net(8), mine(), own_loss),
        lambda run: run.step(10),
    ),
    "momentum that was off": (
        lambda: tiny(momentum=0.0, pretrain=0),
        lambda run: run.step(6),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.set(momentum=0.9), run.step(9)),
    ),
    "the smoothed gate, during its ramp": (
        smoothed,
        lambda run: run.step(9),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(40),
    ),
    "the smoothed gate, frozen": (
        smoothed,
        lambda run: run.step(43),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: run.step(9),
    ),
    "a reset after it": (
        own,
        lambda run: (run.step(8), run.set(lr=0.5)),
        lambda folder: Run.resume(folder, net(8), mine()),
        lambda run: (run.reset(momentum=0.3), run.step(15)),
    ),
}

RESUME_ALL = """
import sys
import warnings
from pathlib import Path
from tests.test_checkpoint import CASES
for i, (_, _, resume, go_on) in enumerate(CASES.values()):
    folder = Path(sys.argv[1]) / str(i)
    run = resume(folder / "half")
    go_on(run)
    run.save(folder / "whole")
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Run]]:
    """Of each case the run that went straight on, and the one that was resumed and went on in another process."""
    folder, straight = tmp_path_factory.mktemp("runs"), {}
    for i, (case, (make, begin, _, go_on)) in enumerate(CASES.items()):
        torch.manual_seed(0)  # for Tied
        run = make()
        begin(run)
        run.save(folder / str(i) / "half")
        go_on(run)
        straight[case] = run
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: the last bits depend on the number of threads
    subprocess.run([sys.executable, "-c", RESUME_ALL, folder], cwd=ROOT, env=environ, check=True, timeout=600)
    whole = {case: resume(folder / str(i) / "whole") for i, (case, (_, _, resume, _)) in enumerate(CASES.items())}
    return {case: (straight[case], whole[case]) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_resumed_in_a_fresh_process_it_goes_on_to_the_bit(case: str, resumed: dict[str, tuple[Run, Run]]) -> None:
    straight, other = resumed[case]
    assert_same(straight, other)


def test_300_steps_are_150_and_150(resumed: dict[str, tuple[Run, Run]]) -> None:
    straight, _ = resumed["lenet300 on digits, 150 and 150"]
    assert (straight.steps, straight.dense_steps, len(straight.history.frame())) == (300, 22, 300)


def test_a_run_is_resumed_as_it_was_left(tmp_path: Path) -> None:
    run = tiny(net())
    run.step(5)
    again = Run.resume(run.save(str(tmp_path / "a")), net(1), mine())  # a folder's name as text
    assert_same(run, again)
    assert again.evaluate(cut=True) == run.evaluate(cut=True) and again.nonzeros == run.nonzeros
    assert again.base == run.base and again.magnitude == run.magnitude


def test_saving_changes_nothing(tmp_path: Path) -> None:
    run, straight = tiny(net()), tiny(net())
    for r, at in ((run, 4), (straight, None)):
        for step in range(12):
            if step == at:
                before = everything(r)
                r.save(tmp_path)
                assert differs(before, everything(r)) == []
            r.step()
    assert_same(run, straight)


def test_a_resumed_reset_takes_what_works_for_another_model(tmp_path: Path) -> None:
    run = Run(pretrain=0, momentum=0.8)
    run.save(tmp_path)
    again = Run.resume(tmp_path)
    for r in (run, again):
        r.reset(model="lenet5")
    assert run.knobs == again.knobs and run.knobs["lr"] == 0.03 and run.knobs["momentum"] == 0.8


def test_a_run_whose_loss_broke_can_be_saved_and_resumed(tmp_path: Path) -> None:
    loss = Breaks(9)
    run = Run(net(), mine(), loss=loss, batch_size=8, pretrain=0, compression=4)
    with pytest.raises(FloatingPointError):
        run.step(20)
    again = Run.resume(run.save(tmp_path), net(), mine(), loss)
    assert again.steps == 8
    assert_same(run, again)
    again.step(3)


def test_an_interrupted_run_can_be_saved_and_resumed(tmp_path: Path) -> None:
    from tests.test_run import interrupt_at, raised

    run = tiny(net())
    interrupt_at(run.model, 23, raised)
    with pytest.raises(KeyboardInterrupt):
        run.train(progress=False)
    straight = tiny(net())
    again = Run.resume(run.save(tmp_path), net(1), mine())
    for r in (again, straight):
        r.step(25 - r.steps)
    assert_same(again, straight)


# ------------------------------------------------------------------------------------------------ what is written


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = tiny(net())
    run.step(12)
    return run.save(tmp_path / "runs" / "a")


def test_the_folder_can_be_read_without_us(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [FILE, "history.csv", "knobs.json"]
    knobs = json.loads((saved / "knobs.json").read_text())
    assert knobs == tiny(net()).knobs and list(knobs) == list(gsm_lab.knobs.KNOBS)
    frame = pd.read_csv(saved / "history.csv")
    assert frame["step"].tolist() == list(range(1, 13)) and frame["lr"].eq(0.1).all()
    tensors = load_file(saved / FILE)
    assert {name.split("/")[0] for name in tensors} == {"model", "initial", "momentum", "history", "random"}


def test_the_header_is_json(saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    plain = json.loads(header(saved / FILE)["__metadata__"]["gsm_lab"], parse_constant=refuse)
    assert plain["version"] == checkpoint.VERSION and plain["torch"] == torch.__version__
    assert (plain["steps"], plain["dense_steps"]) == (12, 10) and 0 <= plain["base"] <= 1
    assert (plain["own_model"], plain["own_data"], plain["own_loss"]) == ("Net", "corners", None)


def test_the_header_of_a_dense_run_is_json_without_a_base(tmp_path: Path) -> None:
    run = tiny()
    run.pretrain(3)
    text = header(run.save(tmp_path) / FILE)["__metadata__"]["gsm_lab"]
    assert "NaN" not in text and json.loads(text)["base"] is None
    again = Run.resume(tmp_path, net(), mine())
    assert again.base is None and again.magnitude is None and again.dense_left == 7


def test_nothing_in_it_is_a_pickle(saved: Path) -> None:
    for path in saved.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80"))
        with warnings.catch_warnings(), pytest.raises((ValueError, IndexError, KeyError, struct.error)):
            warnings.simplefilter("ignore")  # of what it makes of the bytes
            list(pickletools.genops(content))


def test_no_module_of_ours_can_read_a_pickle() -> None:
    """But for what a program sends to processes that it has started itself, through a pipe that nobody else has."""
    inside = Path(gsm_lab.__file__).parent / "distributed/launch.py"
    readers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in {*Path(gsm_lab.__file__).parent.rglob("*.py")} - {inside}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not readers & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "torch.save", "pd.read_pickle"}, path
                assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), path


@pytest.mark.skipif(os.name != "posix", reason="permissions as on Unix")
def test_files_have_the_permissions_files_have(saved: Path) -> None:
    plain = saved / "plain"
    plain.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()} == {stat.S_IMODE(plain.stat().st_mode)}


def test_saving_again_replaces(saved: Path) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    run.save(saved)
    assert Run.resume(saved, net(), mine()).steps == 15 and len(pd.read_csv(saved / "history.csv")) == 15
    assert len(list(saved.iterdir())) == 3


# ------------------------------------------------------------------------------------------------ atomic


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync", "chmod", "fdopen"])
def test_a_save_that_fails_leaves_the_old_run_and_no_rubbish(
    saved: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(f"gsm_lab.training.files.os.{where}", full)
        with pytest.raises(OSError, match="No space left"):
            run.save(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert Run.resume(saved, net(), mine()).steps == 12
    run.save(saved)
    assert Run.resume(saved, net(), mine()).steps == 15


def test_an_interrupt_while_writing_leaves_the_old_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.resume(saved, net(), mine())
    run.step(3)
    replace, left = os.replace, iter((True, False))

    def replace_once(a: str, b: Path) -> None:
        if not next(left):
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(checkpoint.os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        run.save(saved)
    # the file that counts is written first and is whole; those to read are a save behind
    assert Run.resume(saved, net(), mine()).steps == 15 and len(list(saved.iterdir())) == 3


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


# ------------------------------------------------------------------------------------------------ what else is kept


class Versioned(Net):
    """Keeps something that is no tensor in its state."""

    kept: object = {"version": 3, "names": ["a", None, 0.5, True]}

    def get_extra_state(self) -> object:
        return self.kept

    def set_extra_state(self, state: object) -> None:
        self.kept = state


def test_extra_state_of_a_module_is_kept(tmp_path: Path) -> None:
    run = tiny(Versioned())
    run.step(3)
    run.model.kept = {"version": 4}
    other = Versioned()
    again = Run.resume(run.save(tmp_path), other, mine())
    assert other.kept == {"version": 4}
    assert_same(run, again)
    again.reset()
    assert other.kept == Versioned.kept, "as it came"


@pytest.mark.parametrize("kept", [{1: 2}, (1, 2), {"a": object()}, math.nan, {"s": {1}}, b"bytes"])
def test_extra_state_that_json_cannot_hold_is_refused_by_name(tmp_path: Path, kept: object) -> None:
    run = tiny(Versioned())
    run.model.kept = kept
    with pytest.raises(ValueError, match=r"model keeps '_extra_state', a .* that a checkpoint cannot hold; valid"):
        run.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_are_loaded_and_checked(tmp_path: Path) -> None:
    from gsm_lab.cli import run_folder

    run = tiny(Tied(), compression=3)
    run.train(progress=False)
    run.save(tmp_path)
    run_folder._write_weights(run, tmp_path)
    path = tmp_path / checkpoint.WEIGHTS
    for place in (path, str(tmp_path)):
        found = checkpoint.load_weights(place)
        model = Tied()
        model.load_state_dict(found)
        assert sum(int(p.count_nonzero()) for p in gsm_lab.models.prunable(model).values()) == run.nonzeros
    content, plain = path.read_bytes(), load_file(path)
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged, .*`gsm-lab report .*` makes it"):
            checkpoint.load_weights(path)
    save_file(plain, path)
    with pytest.raises(CheckpointError, match="was not written by gsm_lab"):
        checkpoint.load_weights(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load_weights(tmp_path / "nothing")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings as on Linux")
def test_a_resumed_run_does_not_read_from_the_file_any_more(saved: Path) -> None:
    run = Run.resume(saved, net(), mine())
    assert str(saved) not in Path("/proc/self/maps").read_text()
    (saved / FILE).write_bytes(b"")  # as cp and rsync --inplace do on their way
    run.reset()
    straight = tiny(net())
    for r in (run, straight):
        r.step(3)
    assert differs(everything(run), everything(straight)) == []


def test_what_a_kill_left_half_written_goes_with_the_next_save(saved: Path) -> None:
    names = [f".{name}.ab12_xyz" for name in checkpoint.KEPT]
    others = [".checkpoint.safetensors.old", ".bashrc", "checkpoint.safetensors.ab12_xyz", ".mine.ab12_xyz"]
    for name in names + others:
        (saved / name).write_text("")
    Run.resume(saved, net(), mine()).save(saved)
    left = {path.name for path in saved.iterdir()}
    assert left == {FILE, "history.csv", "knobs.json", *others}


def test_a_save_does_not_replace_files_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds history\.csv, but no run .*: save to another folder"):
        tiny(net()).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_an_interrupt_in_a_save_is_raised_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = tiny(net()), checkpoint.write_atomically
    run.step(2)

    def interrupted(path: Path, content: bytes) -> None:
        if path.name == FILE:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run.save(tmp_path / str(times))
        assert sorted(path.name for path in (tmp_path / str(times)).iterdir()) == [FILE, "history.csv", "knobs.json"]
        assert Run.resume(tmp_path / str(times), net(), mine()).steps == 2
    times = 3
    with pytest.raises(KeyboardInterrupt):
        run.save(tmp_path / "3")
    assert not (tmp_path / "3").exists(), "who asks three times does not want to wait"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
