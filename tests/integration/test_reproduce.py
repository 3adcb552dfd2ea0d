"""A small table to the end: interrupted, gone on with, read again, shown and said."""

import html
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dbpkit import Execution
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.locking import writing
from dbpkit.reporting.page import rendered
from dbpkit.tables.helping import helped
from dbpkit.tables.page import answer_of, write_page
from dbpkit.tables.reproduce import reproduce
from dbpkit.tables.table import read_published
from dbpkit.tables.terminal import sentences
from dbpkit.tables.view import table_view
from tests.integration.conftest import environment

pytestmark = pytest.mark.slow  # two purifiers are checked and attacked

TABLE = """
title = "Small <table>"
paper = "A paper of 2025"
place = "table 1"
setting = "A setting as published."
stands_in = "Small models stand in."
models = { classifier = "wrn-28-10", denoiser = "ddpm-cifar10" }
[spec]
knowledge = ["white_box"]
purifier = { sampler = "one_step", steps = 1000 }
attacks = [{ name = "pgd", options = { iterations = 20, eot = 10, step_size = "2/255" } }]
draws = { report = 2 }
[mini]
images = 2
iterations = 1
eot = 1
[[columns]]
name = "clean"
title = "Clean"
reads = { row = "clean" }
[[columns]]
name = "attacked"
title = "Attacked"
reads = { row = "white_box" }
[[columns]]
name = "rate"
title = "Compression rate"
unit = ""
[columns.reads]
analysis = "compression"
options = { tapes = 1, directions = 1, attack_iterations = 0 }
number = "compression rate, gaussian x1"
[[rows]]
name = "first"
label = "First"
cells = { clean = 90.0, attacked = { value = 40.5, unconfirmed = "read off a figure" }, rate = 0.5 }
[[rows]]
name = "again"
label = "The same with another classifier"
models = { classifier = "a classifier that nobody published" }
cells = { attacked = 45.0 }
[[rows]]
name = "dear"
label = "Dear"
spec = { purifier = { steps = 2000 } }
no_mini = "it takes too long here."
cells = { clean = 91.0 }
[[claims]]
words = "Attacked images are right less often."
order = ["first/clean", "first/attacked"]
[[claims]]
words = "The other classifier is better."
order = ["again/attacked", "first/attacked"]
"""


@pytest.fixture(scope="module")
def table_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "small.toml"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def table(table_path):
    return read_published(table_path)


class _StopError(Exception):
    pass


@pytest.fixture(scope="module")
def found(table, tmp_path_factory):
    """Interrupted once while the attacks run, then to the end."""
    out = tmp_path_factory.mktemp("out")

    def stop(_share, what):
        if "white_box" in what:
            raise _StopError

    with pytest.raises(_StopError):
        reproduce([table], out=out, progress=stop)
    left = reproduce([table], out=out, run=False)
    assert left.left == 2
    assert {c.placed.name for c in left.tables[0].cells if c.measured} == {"first/clean"}
    return reproduce([table], out=out)


def test_equal_settings_are_run_once(found):
    assert len(found.seconds) == 2
    assert len(list((found.out / "runs").iterdir())) == 2
    assert found.left == 0


def test_cells_are_measured_beside_what_is_published(found):
    cells = {c.placed.name: c for c in found.tables[0].cells}
    assert 0 <= cells["first/clean"].measured.shown.value <= 100
    assert cells["again/attacked"].measured.shown == cells["first/attacked"].measured.shown
    assert cells["again/attacked"].same == "first/attacked"
    assert cells["dear/clean"].measured is None
    assert "too long" in cells["dear/clean"].why
    assert 0 < cells["first/rate"].measured.shown.value < 2
    assert [c.verdict for c in found.tables[0].claims] == ["undecided", "not testable"]


def test_reading_again_runs_nothing(found, table):
    again = reproduce([table], out=found.out)
    assert again.seconds == {}
    assert again.tables == found.tables


def test_fewer_images_than_there_are_take_those_there_are(found, table):
    assert reproduce([table], out=found.out, limit=1).seconds == {}


def test_page_csv_and_json_have_every_number(found, tmp_path):
    page = write_page(found, tmp_path / "page.html")
    text = page.read_text()
    assert "Small &lt;table&gt;" in text
    assert "<table>" not in text.split("Small")[1][:10]
    assert "published 40.5?" in text
    for count, said in (("1", "on 1 image."), ("3", "on 3 images.")):
        view = table_view(found.tables[0])._replace(images=count)
        drawn = rendered("tables/page.html", title="", scale="mini", answer="", views=[view])
        assert f"measured here, {said}" in drawn
    assert "read off a figure" in text
    assert "too long" in text
    assert "http" not in text.split("</head>")[1]
    lines = page.with_suffix(".csv").read_text().splitlines()
    assert len(lines) == 1 + len(found.tables[0].cells)
    json.dumps(found.as_json(), allow_nan=False)


def test_notebook_shows_every_cell_and_claim(found):
    pandas = pytest.importorskip("pandas")
    shown = found._repr_html_()
    assert shown == found.tables[0]._repr_html_()
    for cell in found.tables[0].as_json()["cells"]:
        assert html.escape(cell["row_label"]) in shown
        if cell["published"] is not None:
            assert f"published {cell['published']:g}" in shown
    for claim in found.tables[0].claims:
        assert claim.verdict in shown
    assert "A question mark: " in shown
    assert "<script" not in shown
    frame = found.to_frame()
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(found.rows()))


def test_paper_scale_says_what_is_missing_and_runs_nothing(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DBPKIT_MODELS", raising=False)
    told = reproduce([table], "paper", out=tmp_path / "paper", run=True)
    lacks = told.tables[0].lacks
    assert told.seconds == {}
    assert not (tmp_path / "paper" / "runs").exists()
    assert "wrn-28-10" in lacks["first/clean"].sentence
    assert "nobody published" in lacks["again/attacked"].sentence
    assert lacks["first/attacked"].cost.calls > 0
    assert not lacks["first/attacked"].cost.measured
    assert lacks["first/rate"].cost is None


def test_a_wrong_name_or_scale_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="liu-dw-box"):
        reproduce("liu-dw", out=tmp_path)
    with pytest.raises(UserError, match="mini or paper"):
        reproduce("liu-dw-box", "huge", out=tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from dbpkit.tables.reproduce import reproduce
from dbpkit.tables.table import read_published
def stop(_share, what):
    if "white_box" in what:
        os.kill(os.getpid(), signal.SIGKILL)
reproduce([read_published(Path(sys.argv[1]))], out=sys.argv[2], progress=stop)
"""


def test_a_killed_process_is_gone_on_with(found, table_path, table, tmp_path):
    """What a second process adds to the records of the first makes the numbers of `found`."""
    command = [sys.executable, "-c", KILLED, str(table_path), str(tmp_path)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(tmp_path.glob("runs/*/records.jsonl"))
    again = reproduce([table], out=tmp_path)
    assert [c.measured for c in again.tables[0].cells] == [c.measured for c in found.tables[0].cells]
    assert again.left == 0
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {p.name for p in (found.out / "runs").iterdir()}


def test_fewer_images_first_and_all_later_is_one_run_that_grows(found, table, tmp_path):
    few = reproduce([table], out=tmp_path, limit=1)
    assert few.left == 0
    assert {c.measured.shown.examples for c in few.tables[0].cells if c.measured} == {1}
    seen = reproduce([table], out=tmp_path, run=False)
    assert seen.left == 2
    assert [c.measured for c in seen.tables[0].cells] == [c.measured for c in few.tables[0].cells]
    grown = reproduce([table], out=tmp_path)
    assert len(grown.seconds) == 2
    assert [c.measured for c in grown.tables[0].cells] == [c.measured for c in found.tables[0].cells]


def test_a_run_that_another_process_makes_is_passed_over(found, table, tmp_path):
    out = copied(found, tmp_path)
    folder = next(c.folder for c in found.tables[0].cells if c.measured and c.measured.scores)
    (own := out / "runs" / folder.name).joinpath("summary.json").unlink()
    (other,) = (f for f in (out / "runs").iterdir() if f != own)
    shutil.rmtree(other)
    with writing(own, "dbpkit reproduce"):
        before = {p: p.read_bytes() for p in own.rglob("*") if p.is_file() and not p.name.startswith(".")}
        partly = reproduce([table], out=out)
        assert (list(partly.seconds), partly.left) == ([other.name], 1)
        assert {p: p.read_bytes() for p in before} == before
    assert reproduce([table], out=out).left == 0


# ------------------------------------------------------------------ several processes


def test_several_processes_make_every_run_once_and_the_same_numbers(found, table, tmp_path):
    several = reproduce([table], out=tmp_path, processes=3)
    assert set(several.seconds) == {p.name for p in (tmp_path / "runs").iterdir()}
    assert several.left == 0
    assert [c.measured for c in several.tables[0].cells] == [c.measured for c in found.tables[0].cells]
    sessions = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/env.json")]
    assert sessions
    assert all(len(own) == 1 for own in sessions)
    assert multiprocessing.active_children() == []


def test_a_helper_that_is_killed_leaves_its_run_to_the_others(found, table, tmp_path):
    def kill(_share, _what):
        for helper in multiprocessing.active_children():
            os.kill(helper.pid, signal.SIGKILL)

    alone = reproduce([table], out=tmp_path, processes=2, progress=kill)
    assert alone.left == 0
    assert [c.measured for c in alone.tables[0].cells] == [c.measured for c in found.tables[0].cells]


def test_helpers_end_with_an_interrupt_and_give_the_threads_back(table, tmp_path):
    before = torch.get_num_threads()

    def stop(_share, what):
        if "white_box" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce([table], out=tmp_path, processes=2, progress=stop)
    assert multiprocessing.active_children() == []
    assert torch.get_num_threads() == before


def test_a_helper_that_is_starting_is_not_told_of_an_interrupt():
    """Ctrl-C reaches all processes of a terminal, and one that imports torch would print where it was."""
    with helped({}, Execution("cpu"), 1) as helpers:
        status = Path(f"/proc/{helpers.processes[0].pid}/status").read_text()
        (blocked,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
        assert blocked >> (signal.SIGINT - 1) & 1
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert not blocked >> (signal.SIGTERM - 1) & 1


ORPHANED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from dbpkit.tables.reproduce import reproduce
from dbpkit.tables.table import read_published
def stop(_share, what):
    if "white_box" in what:
        (helper,) = multiprocessing.active_children()
        Path(sys.argv[3]).write_text(str(helper.pid))
        os.kill(os.getpid(), signal.SIGKILL)
reproduce([read_published(Path(sys.argv[1]))], out=sys.argv[2], processes=2, progress=stop)
"""


def test_a_helper_ends_after_the_process_that_asked_for_it(table_path, table, tmp_path):
    pid, out = tmp_path / "pid", tmp_path / "out"
    command = [sys.executable, "-c", ORPHANED, str(table_path), str(out), str(pid)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    helper, end = Path(f"/proc/{pid.read_text()}"), time.monotonic() + 60
    while helper.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not helper.exists()
    assert reproduce([table], out=out).left == 0


@pytest.mark.parametrize("name", ["spec.json", "records.jsonl", "summary.json"])
def test_a_damaged_run_is_named_and_the_others_are_shown(found, table, tmp_path, name):
    out = copied(found, tmp_path)
    folder = next(c.folder for c in found.tables[0].cells if c.measured and c.measured.scores)
    own = out / "runs" / folder.name
    (own / name).write_bytes(b"{" + (own / name).read_bytes())
    seen = reproduce([table], out=out, run=False)
    cells = {c.placed.name: c for c in seen.tables[0].cells}
    assert seen.left == 1
    assert cells["first/clean"].measured is None
    assert f"the run in '{own}' cannot be read" in cells["first/clean"].why
    assert cells["first/rate"].measured == found.tables[0].cells[2].measured
    assert any(str(own) in said for said in sentences(seen.tables[0]))
    assert "1 run cannot be read: its cells name it" in answer_of(seen)
    ran = reproduce([table], out=out)
    assert (ran.left == 0) == (name == "summary.json")  # which is made anew from the records


def copied(found, folder):
    return shutil.copytree(found.out, folder / "copy")
