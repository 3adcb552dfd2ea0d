"""Files that users name to be written: refused before the work if they cannot lie there or are others'."""

from collections.abc import Callable
from pathlib import Path

import pytest

import dbpkit
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import PAGE, PNG, ZIP, check_place
from tests.bundled import command, small_run


@pytest.mark.parametrize(("begins", "what"), [(PAGE, "a page"), (PNG, "a picture"), (ZIP, "a bundle")])
def test_only_files_of_the_same_kind_are_replaced(begins: bytes, what: str, tmp_path: Path) -> None:
    mine = tmp_path / "my_module.py"
    mine.write_text("def make_classifier(): ...")
    with pytest.raises(UserError, match=rf"my_module\.py' exists and is not {what}\. Use a new --out\.$"):
        check_place(mine, begins, what)
    for content in (begins + b"an older one", b""):
        mine.write_bytes(content)
        assert check_place(str(mine), begins, what) == mine


def test_folders_and_what_cannot_hold_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UserError, match=r"is a folder\. Give the name of a page, such as --out .*page\.html\.$"
    ):
        check_place(tmp_path, PAGE, "a page")
    with pytest.raises(UserError, match=r"file' is a file, not a folder\. Choose another place\.$"):
        check_place(tmp_path / "file" / "deep" / "page.html", PAGE, "a page")
    assert check_place(tmp_path / "new" / "deep" / "page.html", PAGE, "a page").name == "page.html"
    assert not (tmp_path / "new").exists()


def test_nothing_is_computed_for_a_file_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mine = small_run(tmp_path / "run"), tmp_path / "my_module.py"
    mine.write_text("x = 1")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr("dbpkit.reporting.page.run_view", never)
    monkeypatch.setattr("dbpkit.bundles.board.read_entry", never)
    monkeypatch.setattr("dbpkit.bundles.packing.summarise", never)
    monkeypatch.setattr("dbpkit.evaluation.replay.build", never)
    asked: list[Callable[[], object]] = [
        lambda: dbpkit.report([run], mine),
        lambda: dbpkit.board([run], mine),
        lambda: dbpkit.bundle(run, mine),
    ]
    for work in asked:
        with pytest.raises(UserError, match="exists and is not a"):
            work()
    code, _, error = command(capsys, monkeypatch)("replay", run, "--example", 0, "--out", mine)
    assert (code, mine.read_text()) == (2, "x = 1")
    assert "exists and is not a picture" in error
