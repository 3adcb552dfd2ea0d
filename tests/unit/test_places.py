"""Files that users name to be written: refused before the work if they cannot lie there or are others'."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dbpkit
from dbpkit.bundles.board import TABLE
from dbpkit.bundles.packing import BUNDLE
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import PAGE, OwnFile, check_folder, check_place
from dbpkit.foundation.png import png_bytes
from dbpkit.reporting.picture import PICTURE, write_replay_png
from dbpkit.tables.page import CELLS, check_page, page_of
from tests.bundled import command, small_run

NOTE = OwnFile("a note", ".txt", re.compile(b"note "))


def zipped(path: Path) -> None:
    """A zip of the user's, such as a weights file of torch."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"")


FOREIGN: dict[str, tuple[OwnFile, Callable[[Path], object]]] = {
    "page": (PAGE, lambda path: path.write_text("<!DOCTYPE html><html><title>My home</title></html>")),
    "picture": (PICTURE, lambda path: path.write_bytes(png_bytes(np.zeros((4, 4), np.uint8)))),
    "bundle": (BUNDLE, zipped),
    "board": (TABLE, lambda path: path.write_text("name,salary\n")),
    "cells": (CELLS, lambda path: path.write_text("name,salary\n")),
    "module": (PAGE, lambda path: path.write_text("def make_classifier(): ...")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_the_user_are_never_replaced(name: str, tmp_path: Path) -> None:
    """Of the same format or not."""
    kind, write = FOREIGN[name]
    write(mine := tmp_path / "mine")
    before = mine.read_bytes()
    with pytest.raises(
        UserError, match=rf"mine' exists and is not {kind.what} of dbpkit\. Use a new --out\.$"
    ):
        check_place(mine, kind)
    assert mine.read_bytes() == before


def test_files_of_this_package_are_replaced(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    pixels: Any = np.zeros((3, 8, 8))
    for _ in range(2):
        assert dbpkit.report([run], tmp_path / "a.html") == check_place(tmp_path / "a.html", PAGE)
        made = dbpkit.board([run], tmp_path / "b.html")
        assert [check_place(made.page, PAGE), check_place(made.table, TABLE)] == [made.page, made.table]
        assert check_place(dbpkit.bundle(run).path, BUNDLE) == tmp_path / "run.zip"
        write_replay_png(tmp_path / "c.png", pixels, pixels, None, "a", ["b"])
    (tmp_path / "empty").touch()
    assert check_place(str(tmp_path / "empty"), BUNDLE) == tmp_path / "empty"


def test_folders_and_what_cannot_hold_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UserError, match=r"is a folder\. Give the name of a note, such as --out .*note\.txt\.$"
    ):
        check_place(tmp_path, NOTE)
    with pytest.raises(UserError, match=r"file' is a file, not a folder\. Choose another place\.$"):
        check_place(tmp_path / "file" / "deep" / "page.html", NOTE)
    assert check_place(tmp_path / "new" / "deep" / "page.html", NOTE).name == "page.html"
    assert not (tmp_path / "new").exists()


def test_links_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    """A pipe or /dev/null would become a file; a link would no longer lead anywhere."""
    (tmp_path / "note").write_text("note 1")
    (tmp_path / "link").symlink_to("note")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling"):
        with pytest.raises(
            UserError, match=r"is a link\. Name the file that it leads to, or use a new --out\.$"
        ):
            check_place(tmp_path / name, NOTE)
    with pytest.raises(UserError, match=r"pipe' \(it is not a file\)\. Choose another place\.$"):
        check_place(tmp_path / "pipe", NOTE)
    assert check_place(tmp_path / "note", NOTE) == tmp_path / "note"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "new/" + "x" * 300 + "/a", "a\0b"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    """A file is written under a longer name first."""
    with pytest.raises(UserError, match=r"^cannot write .*(too long|null).*\. Choose another place\.$"):
        check_place(tmp_path / name, NOTE)


def test_folders_of_results_are_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "dangling"):
        with pytest.raises(UserError, match=r"' is a file\. Name a folder\.$"):
            check_folder(tmp_path / name)
    with pytest.raises(UserError, match=r"is a file, not a folder"):
        check_folder(tmp_path / "file" / "below")
    check_folder(tmp_path)
    check_folder(tmp_path / "new")


def test_nothing_is_computed_for_a_file_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mine = small_run(tmp_path / "run"), tmp_path / "my_module.py"
    mine.write_text("x = 1")
    (tmp_path / "b.csv").write_text("name,salary\n")
    (tmp_path / "c-figures").write_text("mine")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr("dbpkit.reporting.page.run_view", never)
    monkeypatch.setattr("dbpkit.bundles.board.read_entries", never)
    monkeypatch.setattr("dbpkit.bundles.packing.summarise", never)
    monkeypatch.setattr("dbpkit.evaluation.replay.build", never)
    monkeypatch.setattr("dbpkit.tables.reproduce.run_jobs", never)
    monkeypatch.setattr("dbpkit.models.converting.open_model", never)
    monkeypatch.setattr("dbpkit.law", never)
    asked: list[Callable[[], object]] = [
        lambda: dbpkit.report([run], mine),
        lambda: dbpkit.report([run], tmp_path / "c.html"),
        lambda: dbpkit.board([run], mine),
        lambda: dbpkit.board([run], tmp_path / "b.html"),
        lambda: dbpkit.bundle(run, mine),
    ]
    for work in asked:
        with pytest.raises(UserError, match=r"exists and is not a|is a file\. Name a folder"):
            work()
    run_command = command(capsys, monkeypatch)
    code, _, error = run_command("replay", run, "--example", 0, "--out", mine)
    assert (code, mine.read_text()) == (2, "x = 1")
    assert "exists and is not a picture" in error
    place = page_of(["diffbreak-one-shot"], tmp_path)
    place.with_suffix(".csv").write_text("name,salary\n")
    with pytest.raises(UserError, match="is not a table of cells of dbpkit"):
        check_page(place)
    for words in (
        ("reproduce", "diffbreak-one-shot", "--out", tmp_path, "--limit", 1),
        ("law", run, "--out", mine),
        ("convert", mine, mine / "a.safetensors"),
    ):
        code, _, error = run_command(*words)
        assert (code, error.count("error:")) == (2, 1), words
        assert "is a file" in error or "exists and is not" in error
