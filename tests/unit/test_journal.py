import json
import os
from pathlib import Path

import pytest

from dbpkit import UserError
from dbpkit.results.journal import Journal

FIRST = [{"a": 1, "b": [0.5, None]}, {"a": 2}]
SECOND = [{"a": 3}, {"a": 4}, {"a": 5}]


def journal(folder: Path, digests: bool = True) -> Journal:
    return Journal(folder / "log.jsonl", digests=digests)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    made = journal(tmp_path)
    made.append(FIRST)
    made.append(SECOND)
    return made.path


def test_journal_reads_what_was_appended(written: Path) -> None:
    assert Journal(written).entries() == [*FIRST, *SECOND]


def test_journal_every_line_is_json_and_only_the_last_of_an_append_has_a_digest(written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert ["digest" in line for line in lines] == [False, True, False, False, True]


def test_journal_is_the_same_bytes_whoever_appends(written: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for entries in (FIRST, SECOND):
        journal(tmp_path / "b").append(entries)  # a new object each time, as after a restart
    assert (tmp_path / "b" / "log.jsonl").read_bytes() == written.read_bytes()


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_journal_torn_append_is_dropped_whole_and_written_again_to_the_same_bytes(
    cut: int, written: Path
) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[:-cut])
    again = Journal(written, digests=True)
    assert again.entries() == FIRST, "an append is there as a whole or not at all"
    again.append(SECOND)
    assert written.read_bytes() == whole


@pytest.mark.parametrize(
    "tail", [b"\n", b"\n\n", b"\0\0\0\0", b"\0\0\n", b"\r\n", b"  \n", b'{"a": 9', b"}{\n"]
)
@pytest.mark.parametrize("digests", [True, False])
def test_journal_what_readers_pass_over_is_cut_before_the_next_append(
    tail: bytes, digests: bool, written: Path
) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole + tail)
    again = Journal(written, digests=digests)
    assert again.entries() == [*FIRST, *SECOND]
    again.append([{"a": 6}])
    assert written.read_bytes().startswith(whole + b'{"a": 6')
    assert Journal(written, digests=True).entries() == [*FIRST, *SECOND, {"a": 6}]


def test_journal_blank_lines_padding_and_carriage_returns_inside_change_nothing(written: Path) -> None:
    written.write_bytes(b"\r\n" + written.read_bytes().replace(b"\n", b"\r\n\n\0\0\n \n"))
    assert Journal(written, digests=True).entries() == [*FIRST, *SECOND]


@pytest.mark.parametrize("tail", [b"", b"\n", b'{"a": 7', b"\0\0"])
def test_journal_of_an_older_version_without_digests_is_read_and_continued(
    tail: bytes, tmp_path: Path
) -> None:
    old = journal(tmp_path, digests=False)
    old.path.write_bytes(b'{"a": 1}\n\n{"a": 2}\n' + tail)
    assert old.entries() == [{"a": 1}, {"a": 2}]
    assert not old.has_digest
    old.append([{"a": 3}])
    again = journal(tmp_path, digests=False)
    assert again.entries() == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert again.has_digest, "from now on the old lines are covered too"
    old.path.write_bytes(old.path.read_bytes().replace(b'"a": 1', b'"a": 8'))
    with pytest.raises(UserError, match="line 4 is damaged"):
        journal(tmp_path, digests=False).entries()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"a": 1', b'"a": 9'),
        (b'"a": 5', b'"a": 6'),
        (b'{"a": 3}\n', b""),
        (b'{"a": 4}\n', b'{"a": 4}\n' * 2),
    ],
)
def test_journal_changed_dropped_or_doubled_line_is_refused(old: bytes, new: bytes, written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(old, new))
    with pytest.raises(UserError, match=r"log\.jsonl' line \d is damaged \(.*changed after it was written\)"):
        Journal(written, digests=True).entries()


def test_journal_whose_digests_were_removed_is_refused(written: Path) -> None:
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for line in lines:
        line.pop("digest", None)
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="the digests of the lines are missing"):
        Journal(written, digests=True).entries()


@pytest.mark.parametrize("line", [b"x", b"[]", b"7", b'{"a": ' + b"[" * 10_000, b"\xff\xfe", b'{"a": 1'])
def test_journal_damaged_line_before_others_is_one_sentence(line: bytes, written: Path) -> None:
    written.write_bytes(line + b"\n" + written.read_bytes())
    with pytest.raises(UserError, match="line 1 is damaged") as caught:
        Journal(written, digests=True).entries()
    assert "\n" not in str(caught.value)


def test_journal_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    journal(tmp_path).path.mkdir()
    with pytest.raises(UserError, match="cannot read"):
        journal(tmp_path).entries()


def test_journal_keep_cuts_after_whole_appends(tmp_path: Path) -> None:
    made = journal(tmp_path)
    for number in range(4):
        made.append([{"update": number}])
    made.keep(2)
    assert made.entries() == [{"update": 0}, {"update": 1}]
    made.append([{"update": 2}])
    assert journal(tmp_path).entries()[-1] == {"update": 2}
    made.keep(0)
    assert made.path.read_bytes() == b""
    assert made.entries() == []
    with pytest.raises(ValueError, match="no append that ends after 1"):
        made.keep(1)


def test_journal_notices_what_another_process_appended(written: Path) -> None:
    first = Journal(written, digests=True)
    first.entries()
    Journal(written, digests=True).append([{"a": 6}])
    first.append([{"a": 7}])
    assert Journal(written, digests=True).entries()[-2:] == [{"a": 6}, {"a": 7}]


def test_journal_full_disk_leaves_what_was_there(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        Journal(written).append(SECOND)
    assert written.read_bytes() == whole
