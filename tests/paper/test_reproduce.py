"""The command that re-makes tables: rows from real runs, nothing made twice, an interrupted one goes on."""

import json
import re

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import gsm_lab.paper.reproduce as module
from gsm_lab import cli, data, methods
from gsm_lab.figures import rivals as figures
from gsm_lab.methods import tickets
from gsm_lab.paper import dense_epochs, entries
from gsm_lab.paper.csv_store import COLUMNS
from gsm_lab.paper.entries import TABLES, Entry
from gsm_lab.paper.reproduce import reproduce
from gsm_lab.training import loop
from gsm_lab.training.run import Run
from tests.runs import mine

ENTRIES = (
    Entry("GSM", "gsm", "lenet300", 60, 98.18),
    Entry("GSM, smoothed gate", "gsm", "lenet300", 60, None, {"smoothing": 0.9, "ramp": 0.5, "lr": 0.3}),
    Entry("DNS", "dns", "lenet300", 30, 98.01, {"lr": 0.1}),
    Entry("ticket, by magnitude", "tickets", "lenet300", 10, 97.39, {}, "magnitude", {"lr": 0.2}),
    Entry("ticket, by gsm", "tickets", "lenet300", 10, None, {}, "gsm"),
)


@pytest.fixture
def small(monkeypatch):
    """Five rows on twelve samples a class, so that a run takes a moment."""
    digits = data.load("digits")
    few = data.Dataset(digits.train_x[:160], digits.train_y[:160], digits.test_x[:50], digits.test_y[:50], "digits")
    monkeypatch.setattr(module.datasets, "load", lambda name: few)
    monkeypatch.setitem(TABLES, "small", ENTRIES)
    return few


def test_rows_are_runs(small, tmp_path):
    out = tmp_path / "deep/small.csv"
    made = reproduce("small", out, "digits", seeds=(0, 1), epochs=2, progress=False)
    assert list(made.columns) == list(COLUMNS) and len(made) == 2 * len(ENTRIES)
    pd.testing.assert_frame_equal(made, pd.read_csv(out), check_dtype=False)
    row = made[(made["label"] == "DNS") & (made["seed"] == 1)].iloc[0]
    own = json.loads(row["settings"])["run"]
    assert own["lr"] == 0.05 and own["margin"] == 0.1, "all that was in force, whoever said it"
    assert set(json.loads(made["settings"].iloc[-1])) == {"by", "search", "ticket"}
    run = methods.prune("dns", progress=False, model="lenet300", data=small, compression=30, seed=1, epochs=2)
    assert row["cut"] == pytest.approx(run.evaluate(), abs=1e-5)
    assert row["nonzeros"] == 266_200 // 30 and row["weights"] == 266_200 and row["epochs"] == 2
    assert row["base"] == pytest.approx(run.base, abs=1e-5)
    assert (made["nonzeros"] == made["weights"] // made["compression"]).all()
    assert made["command"].iloc[0] == "gsm-lab reproduce small --data digits --threads 1 --epochs 2"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"].iloc[0]) and made["machine"].iloc[0]
    same = made.groupby("seed")["base"].nunique()
    assert (same == 1).all(), "all methods begin with the same dense network"


def test_what_came_later_and_is_off_is_no_setting_of_a_row():
    later = {"cut_at", "thresholds"}
    assert not later & module._settings(methods.build("dns", data="digits")).keys()
    assert module._settings(methods.build("dns", data="digits", thresholds="size"))["thresholds"] == "size"
    assert module._settings(methods.build("gsm", data="digits", cut_at=0.5))["cut_at"] == 0.5


def test_options_of_gsm_are_named_for_what_they_do():
    settings = {e.label: e.settings for e in TABLES["table1"] if e.model == "lenet5" and e.method == "gsm"}
    assert settings["GSM"] == {} and len(settings) == 2
    halfway = settings["GSM, smoothed gate, cut halfway"]
    assert halfway["ramp"] < halfway["cut_at"] == 0.5


def test_what_is_there_is_not_made_again(small, tmp_path, monkeypatch):
    out = tmp_path / "small.csv"
    reproduce("small", out, "digits", seeds=(0,), only="GSM", epochs=1, progress=False)
    before = out.read_bytes()
    monkeypatch.setattr(module, "_made", lambda *_: pytest.fail("made again"))
    reproduce("small", out, "digits", seeds=(0,), only="GSM", epochs=1, progress=False)
    assert out.read_bytes() == before
    monkeypatch.undo()


def test_what_a_kill_left_of_a_row_that_is_there_goes(small, tmp_path, monkeypatch):
    """The row is in first, and then what it was made from goes: a kill may come in between, or meanwhile."""
    out, left = tmp_path / "small.csv", []
    with monkeypatch.context() as killed:
        killed.setattr(module.shutil, "rmtree", lambda folder, **_: left.append(folder))
        reproduce("small", out, "digits", seeds=(0,), only="GSM", epochs=1, progress=False)
    (left[0] / "search").mkdir(parents=True)  # as the kill of a longer run leaves it
    (left[0] / "search" / "checkpoint.safetensors").write_bytes(b"some of it")
    monkeypatch.setattr(module, "_made", lambda *_: pytest.fail("made again"))
    before = out.read_bytes()
    reproduce("small", out, "digits", seeds=(0,), only="GSM", epochs=1, progress=False)
    assert out.read_bytes() == before and not left[0].exists()


def test_other_settings_replace_a_row(small, tmp_path):
    out = tmp_path / "small.csv"
    reproduce("small", out, "digits", seeds=(0,), epochs=1, only="DNS", progress=False)
    reproduce("small", out, "digits", seeds=(0,), epochs=1, only="GSM", progress=False)
    made = reproduce("small", out, "digits", seeds=(0,), epochs=2, only="DNS", progress=False)
    assert list(made["epochs"]) == [2]
    assert sorted(pd.read_csv(out)["label"]) == ["DNS", "GSM"]


@pytest.mark.parametrize("label", ["DNS", "ticket, by gsm"])
def test_an_interrupted_run_goes_on_where_it_stopped(small, tmp_path, monkeypatch, label):
    whole = reproduce("small", tmp_path / "a.csv", "digits", seeds=(0,), only=label, epochs=3, progress=False)
    steps = []
    real = module.Run.gated_step

    def interrupted(run):
        real(run)
        steps.append(run.steps)
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "PORTION", 1)
    monkeypatch.setattr(module.Run, "gated_step", interrupted)
    out = tmp_path / "b.csv"
    with pytest.raises(KeyboardInterrupt):
        reproduce("small", out, "digits", seeds=(0,), only=label, epochs=3, progress=False)
    assert not out.exists() and len(list(tmp_path.rglob("checkpoint.safetensors"))) == 1
    made = reproduce("small", out, "digits", seeds=(0,), only=label, epochs=3, progress=False)
    assert steps[3] == 4, "it began anew"
    assert made[["live", "cut", "base"]].equals(whole[["live", "cut", "base"]])
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def stop_at(monkeypatch, n):
    """Ctrl-C after the n-th gated step; the steps done, as a list that grows."""
    steps = []
    real = module.Run.gated_step

    def interrupted(run):
        real(run)
        steps.append((run.method.name, run.steps))
        if len(steps) == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "PORTION", 1)
    monkeypatch.setattr(module.Run, "gated_step", interrupted)
    return steps


def test_an_interrupted_run_of_other_settings_is_another_run(small, tmp_path, monkeypatch):
    out = tmp_path / "a.csv"
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        reproduce("small", out, "digits", seeds=(0,), only="DNS", epochs=3, progress=False)
    made = reproduce("small", out, "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    assert made["epochs"].item() == json.loads(made["settings"].item())["run"]["epochs"] == 2
    whole = reproduce("small", tmp_path / "b.csv", "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    assert made["cut"].equals(whole["cut"])


def test_a_search_is_not_made_again_for_its_interrupted_ticket(small, tmp_path, monkeypatch):
    whole = reproduce(
        "small", tmp_path / "a.csv", "digits", seeds=(0,), only="ticket, by gsm", epochs=1, progress=False
    )
    steps = stop_at(monkeypatch, 4)
    out = tmp_path / "b.csv"
    with pytest.raises(KeyboardInterrupt):
        reproduce("small", out, "digits", seeds=(0,), only="ticket, by gsm", epochs=1, progress=False)
    assert steps[-1][0] == "tickets", "it was to be interrupted later"
    made = reproduce("small", out, "digits", seeds=(0,), only="ticket, by gsm", epochs=1, progress=False)
    assert len(set(steps)) == len(steps), "a step was done twice"
    assert made[["live", "cut", "base"]].equals(whole[["live", "cut", "base"]])


@pytest.mark.parametrize("stop", [2, 4, 7])  # of four steps of the search, and eight of the ticket
def test_a_search_that_ends_with_the_cut_goes_on_where_it_stopped(small, tmp_path, monkeypatch, stop):
    cut = {"smoothing": 0.9, "cut_at": 0.5}
    monkeypatch.setitem(TABLES, "small", (Entry("ticket", "tickets", "lenet300", 10, None, cut, "gsm"),))
    whole = reproduce("small", tmp_path / "a.csv", "digits", seeds=(0,), epochs=4, progress=False)
    steps, out = stop_at(monkeypatch, stop), tmp_path / "b.csv"
    with pytest.raises(KeyboardInterrupt):
        reproduce("small", out, "digits", seeds=(0,), epochs=4, progress=False)
    made = reproduce("small", out, "digits", seeds=(0,), epochs=4, progress=False)
    assert steps == [("gsm", i + 1) for i in range(4)] + [("tickets", i + 1) for i in range(8)]
    assert made[["live", "cut", "base", "nonzeros"]].equals(whole[["live", "cut", "base", "nonzeros"]])


def test_a_run_that_breaks_down_is_named_and_the_others_are_made(small, tmp_path, monkeypatch):
    real = methods.kind("dns").before_step

    def broken(method, run):
        raise FloatingPointError("a gradient is not finite")

    monkeypatch.setattr(methods.kind("dns"), "before_step", broken)
    out = tmp_path / "a.csv"
    with pytest.raises(FloatingPointError, match=r"^DNS on lenet300, 30x, seed 1: a gradient is not finite$"):
        reproduce("small", out, "digits", seeds=(1,), only=["DNS", "GSM"], epochs=1, progress=False)
    assert list(pd.read_csv(out)["label"]) == ["GSM"]
    monkeypatch.setattr(methods.kind("dns"), "before_step", real)
    rows = reproduce("small", out, "digits", seeds=(1,), only=["DNS", "GSM"], epochs=1, progress=False)
    assert list(rows["label"]) == ["DNS", "GSM"]


def test_dense_epochs_are_made_once_a_seed(small, tmp_path, monkeypatch):
    """Rows are, to the bit, what each would be with dense epochs of its own."""
    labels = ["GSM", "DNS", "ticket, by gsm", "ticket, by magnitude"]
    alone = [
        reproduce("small", tmp_path / f"{i}.csv", "digits", (0,), x, epochs=1, progress=False)
        for i, x in enumerate(labels)
    ]
    dense, real = [], module.Run.dense_step
    monkeypatch.setattr(module.Run, "dense_step", lambda run: dense.append(run.method.name) or real(run))
    rows = reproduce("small", tmp_path / "a.csv", "digits", (0,), labels, epochs=1, progress=False)
    run = methods.build("gsm", model="lenet300", data=small)
    assert len(dense) == run.dense_left, "one row's"
    columns = ["label", "base", "live", "cut"]
    assert rows[columns].sort_values("label").values.tolist() == sorted(pd.concat(alone)[columns].values.tolist())
    assert (rows["seconds"] > 0).all() and not list(tmp_path.rglob("dense-*"))


def weights(run) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in run.model.parameters()])


@pytest.mark.parametrize("damage", ["a bit", "cut short", "nothing left", "no checksum"])
def test_a_damaged_dense_network_is_made_anew(small, tmp_path, damage):
    folder = tmp_path / ".a-unfinished" / "row"
    make = lambda: methods.build("gsm", model="lenet300", data=small, pretrain=1)  # noqa: E731
    run = make()
    run.pretrain()
    dense_epochs.keep(run, folder, 2.5)
    taken = make()
    assert dense_epochs.take(taken, folder) == 2.5
    assert torch.equal(weights(taken), weights(run)) and torch.equal(taken.random_state, run.random_state)
    (path,) = tmp_path.rglob("dense-*.safetensors")
    content = path.read_bytes()
    if damage == "no checksum":
        save_file(load_file(path), path)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
        path.write_bytes({"a bit": flipped, "cut short": content[:middle], "nothing left": b""}[damage])
    for damaged in (True, False):  # made anew, and kept again
        other = make()
        took = dense_epochs.take(other, folder)
        assert (took == 0) == damaged == bool(other.dense_left) == (not path.exists())
        module._trained(other, folder, progress=False, until=0)
        assert torch.equal(weights(other), weights(run)) and other.base == run.base


def test_a_damaged_row_is_refused_by_line(small, tmp_path, capsys):
    out = tmp_path / "small.csv"
    reproduce("small", out, "digits", seeds=(0,), only=["DNS", "GSM"], epochs=1, progress=False)
    good = out.read_text()
    lines = good.splitlines(keepends=True)
    assert lines[0].endswith(",sha256\n")
    for old, new in ((",lenet300,", ",lenet308,"), (",266200,", ",266201,"), (",digits,", ",ligits,")):
        out.write_text(lines[0] + lines[1] + lines[2].replace(old, new))
        with pytest.raises(ValueError, match=r"^row 3 of .*small.csv \(GSM, .*\) does not match its checksum"):
            reproduce("small", out, "digits", seeds=(0,), only="DNS", epochs=1, progress=False)
    for bad in (good[:-30], good.replace("label", "lapel"), good.replace("sha256", "shb256"), "\xff", good + '"', ""):
        out.write_bytes(bad.encode("latin-1"))
        assert cli.main(["reproduce", "small", "--data", "digits", "--only", "DNS", "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("gsm-lab: ") and str(out) in said and said.count("\n") == 1
    out.write_text(lines[0] + lines[2])  # the way out
    made = reproduce("small", out, "digits", seeds=(0,), only=["DNS", "GSM"], epochs=1, progress=False)
    assert list(made["label"]) == ["DNS", "GSM"]


def test_a_csv_from_before_there_were_checksums_is_read_and_gets_them(small, tmp_path):
    out = tmp_path / "small.csv"
    before = reproduce("small", out, "digits", seeds=(0,), only="GSM", epochs=1, progress=False)
    pd.read_csv(out).drop(columns="sha256").to_csv(out, index=False)
    made = reproduce("small", out, "digits", seeds=(0,), only=["GSM", "DNS"], epochs=1, progress=False)
    columns = ["label", "live", "cut", "seconds", "date"]
    assert made[made["label"] == "GSM"][columns].values.tolist() == before[columns].values.tolist()
    assert made["sha256"].str.fullmatch("[0-9a-f]{64}").all()


def test_a_damaged_run_on_the_shelf_is_made_anew(small, tmp_path, monkeypatch, capsys):
    whole = reproduce("small", tmp_path / "a.csv", "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    out = tmp_path / "b.csv"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            reproduce("small", out, "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    (path,) = tmp_path.rglob("checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    made = reproduce("small", out, "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    assert made["cut"].equals(whole["cut"])
    said = capsys.readouterr().err
    assert str(path) in said and "is damaged" in said and said.strip().endswith("it is made anew")


def test_a_save_that_fails_is_tried_again(small, tmp_path, monkeypatch, capsys):
    saves, real = [], module.Run.save

    def full(run, folder, note):
        saves.append(run.steps)
        if len(saves) in (2, 3):
            raise OSError(28, "No space left on device")
        return real(run, folder, note)

    monkeypatch.setattr(module.Run, "save", full)
    monkeypatch.setattr(loop, "PORTION", 1)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    made = reproduce("small", tmp_path / "a.csv", "digits", seeds=(0,), only="DNS", epochs=2, progress=False)
    assert len(made) == 1 and len(saves) > 3
    assert capsys.readouterr().err.count("No space left on device; training goes on, and it is tried again") == 2


def test_a_csv_that_cannot_be_written_is_said_before_a_run(small, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "_made", lambda *_: pytest.fail("a run was made"))
    monkeypatch.setattr("gsm_lab.training.files.os.fsync", refused)
    out = tmp_path / "a.csv"
    assert cli.main(["reproduce", "small", "--data", "digits", "--only", "DNS", "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"gsm-lab: {tmp_path} cannot be written (Read-only file system): ")


@pytest.mark.parametrize("length", [243, 251, 300])
def test_a_csv_whose_name_is_too_long_is_said_before_a_run(small, length, tmp_path, monkeypatch, capsys):
    """Also where only what is made beside it has no room: a temporary file, the folder of unfinished runs."""
    monkeypatch.setattr(module, "_made", lambda *_: pytest.fail("a run was made"))
    out = tmp_path / ("a" * length + ".csv")
    assert cli.main(["reproduce", "small", "--data", "digits", "--only", "DNS", "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said == f"gsm-lab: {out} cannot be written (File name too long): give it a shorter name or name another place"
    )
    assert not list(tmp_path.iterdir())


def test_what_another_command_has_in_hand_comes_last(small, tmp_path, monkeypatch):
    out, order = tmp_path / "a.csv", []
    monkeypatch.setattr(module, "entries", lambda *_: list(ENTRIES[:3]))
    real, claimed, busy = module._made, module.csv_store.claimed, []

    def made(runs, by, folder, progress):
        order.append(runs["run"].method.name)
        if len(order) == 2:
            busy.pop().__exit__(None, None, None)  # the other command stops
        return real(runs, by, folder, progress)

    def other_was_first(folder, wait):
        if not busy and not order:
            busy.append(claimed(folder, False))
            assert busy[0].__enter__()
        return claimed(folder, wait)

    monkeypatch.setattr(module, "_made", made)
    monkeypatch.setattr(module.csv_store, "claimed", other_was_first)
    rows = reproduce("small", out, "digits", seeds=(0,), epochs=1, progress=False)
    assert order == ["gsm", "dns", "gsm"] and len(rows) == 3


def test_settings_depend_on_the_data():
    entry = ENTRIES[1]
    assert module.given(entry, "mnist") == (entry.settings, {})
    assert module.given(entry, "digits") == ({"smoothing": 0.9, "ramp": 0.5}, {})  # the option, not MNIST's rate
    assert module.given(ENTRIES[3], "mnist") == ({}, {"lr": 0.2})
    assert module.given(ENTRIES[4], "digits", 7) == ({"epochs": 7}, {"epochs": 7})


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_can_be_built(table):
    rows = TABLES[table]
    assert len({(e.label, e.model, e.compression) for e in rows}) == len(rows)
    for e in rows:
        settings, then = module.given(e, "mnist")
        run = methods.build(e.method if e.by is None else "gsm", model=e.model, compression=e.compression, **settings)
        assert json.loads(json.dumps([settings, then])) == [settings, then]
        Run(e.model, compression=e.compression, method=tickets.Ticket(), **then)
        assert e.published is None or 0 < e.published < 100
        assert run.nonzeros >= 10


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="table must be one of table1, table4, rivals, got 'table9'"):
        reproduce("table9", tmp_path / "a.csv")
    with pytest.raises(ValueError, match="seeds must hold at least one value"):
        reproduce("table1", tmp_path / "a.csv", "digits", seeds=())
    with pytest.raises(
        ValueError, match=r"only must hold labels, methods or models of table1, got \['x'\]: \['ADMM', "
    ):
        entries.entries("table1", ["dns", "x"])
    assert [e.label for e in entries.entries("rivals", ["dns", "random"], [60])] == ["DNS", "random"]
    with pytest.raises(ValueError, match=r"compressions must hold some of \[55\.6, 107\.7\], got \[60\]"):
        entries.entries("table1", "dns", [60])
    assert [e.compression for e in entries.entries("table1", "dns", [60, 107.7])] == [107.7]
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no CSV of `gsm-lab reproduce`: it has no column table"):
        reproduce("table1", other, "digits", only="L-OBS", progress=False)
    assert other.read_text() == "a,b\n1,2\n"
    with pytest.raises(ValueError, match="compression must leave a weight for each of the 4 outputs, at most 92"):
        methods.build("gsm", model=mine_model(), data=mine(), compression=100)


def mine_model():
    from tests.runs import net

    return net()


def test_command_line(small, tmp_path, capsys):
    out = tmp_path / "small.csv"
    arguments = ["reproduce", "small", "--data", "digits", "--only", "DNS", "--seeds", "2", "--epochs", "1"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "DNS" in said and f"In {out}: a row a run." in said and len(pd.read_csv(out)) == 2
    assert cli.main(["reproduce", "nonsense", "--data", "digits"]) == 2
    assert "table must be one of" in capsys.readouterr().err


# -- figures -----------------------------------------------------------------------------------------------------------

ROWS = pd.DataFrame(
    {
        "label": ["GSM", "GSM", "DNS", "DNS", "GSM"], "model": ["lenet300"] * 4 + ["lenet5"],
        "compression": [60.0, 60.0, 60.0, 60.0, 125.0], "seed": [0, 1, 0, 1, 0], "base": 0.985,
        "live": [0.983, 0.985, 0.97, 0.97, 0.99], "cut": [0.982, 0.984, 0.96, 0.97, 0.99],
        "published": [98.18, 98.18, float("nan"), float("nan"), 99.22], "seconds": 10.0,
    }
)  # fmt: skip


def test_summary_is_over_seeds():
    rows = figures.summary(ROWS).set_index(["label", "model"])
    gsm = rows.loc["GSM", "lenet300"]
    assert gsm["runs"] == 2 and gsm["cut"] == pytest.approx(98.3) and gsm["spread"] == pytest.approx(0.2 / 2**0.5)
    assert (gsm["low"], gsm["high"], gsm["lost"]) == pytest.approx((98.2, 98.4, 0.1))


def test_figures_state_the_finding():
    first = figures.budgets(ROWS)
    assert first.layout.title.text == "<b>At 60× GSM keeps 98.30%, DNS 96.50%</b>"
    second = figures.against_published(ROWS)
    assert second.layout.title.text.replace("<br>", " ") == (
        "<b>Measured minus published: -0.22 to +0.12 points, 1 of 2 rows at least as good</b>"
    )
    third = figures.ranked(ROWS)
    assert third.layout.title.text == "<b>At 60× GSM keeps 98.30%, then DNS 96.50%</b>"
    alone = figures.ranked(ROWS, "lenet5", 125)
    assert alone.layout.title.text == figures.budgets(ROWS, "lenet5").layout.title.text
    assert alone.layout.title.text == "<b>At 125× GSM keeps 99.00%</b>"
    more = pd.concat([ROWS, ROWS.assign(label="L1", cut=0.98), ROWS.assign(label="random", cut=0.4)])
    said = "<b>At 60× GSM keeps 98.30%, then L1 98.00%, and random 40.00%</b>"
    assert figures.ranked(more).layout.title.text == said
    every = pd.concat([ROWS.assign(label=str(i)) for i in range(10)])  # as many methods as the table of rivals has
    assert len({(t.line.dash, t.marker.symbol) for t in figures.budgets(every).data}) == 10
    assert list(third.data[0].x) == ["GSM", "DNS"] and list(third.data[1].y) == pytest.approx([98.4, 97.0])
    for figure in (first, second, third):
        assert len({(t.line.dash, t.marker.symbol) for t in figure.data}) == len(figure.data)
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text
        assert all(t.hovertemplate for t in figure.data)
    far = ROWS.assign(cut=ROWS["cut"].where(ROWS["label"] == "GSM", 0.4))
    shown = figures.ranked(pd.concat([far, ROWS[ROWS["label"] == "DNS"].assign(label="L1")]))
    low, high = shown.layout.yaxis.range
    assert 90 < low < 96 and 98.5 < high < 100 and [a.text for a in shown.layout.annotations][-1].startswith("40.0%")
    shown = figures.against_published(ROWS.assign(published=ROWS["published"].replace(99.22, 11.35)))
    assert shown.layout.yaxis.range[0] > 97 and shown.layout.annotations[-1].text == "published 11.35%<br>↓ (below)"
    assert shown.layout.annotations[-1].x == shown.data[0].x[1]
    more = [ROWS.assign(compression=20.0), ROWS, ROWS.assign(label="random", cut=0.4, compression=100.0)]
    shown = figures.budgets(pd.concat(more))
    assert shown.layout.yaxis.range[0] > 94 and shown.layout.annotations[-1].x == 2  # the axis is one of log10
    assert shown.layout.annotations[-1].text == "random 40.0%<br>↓ (below)"
    pixels = figures.pixels([[0, 2], [3, 1]])
    assert pixels.layout.title.text == "<b>3 of 4 pixels are read, 1 by no weight at all</b>"
    with pytest.raises(ValueError, match="table of resnet56 must have at least one row"):
        figures.budgets(ROWS, "resnet56")
