"""Bundles as a stranger may send them: archives that lead elsewhere, blow up, lie, or name code.

Each ends in one sentence; nothing is written outside the folder that the bundle is opened in, and no module
that it names is imported.
"""

import hashlib
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import RunDirectory, UserError, verify
from dbpkit.bundles import archive as archives
from dbpkit.bundles.archive import write_archive
from dbpkit.bundles.manifest import Manifest
from dbpkit.bundles.opening import opened_bundle
from dbpkit.bundles.packing import bundle
from dbpkit.results.journal import Journal
from dbpkit.results.layout import canonical_hash
from tests.bundled import PARTS, REPOSITORY, forget_typed, small_run
from tests.fuzz.harness import chooser, run_case

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle."""
    folder = tmp_path_factory.mktemp("good")
    return bundle(small_run(folder / "run"), folder / "good.zip").path


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def members_of(packed: Path) -> Members:
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, members: Members) -> Path:
    """A bundle in the right form, whatever it holds."""
    write_archive(path, members.items())
    return path


def told(members: Members, **changes: Any) -> Members:
    """The same with a manifest that fits its members, but for what is changed."""
    manifest = json.loads(members["manifest.json"])
    own = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in members.items()}
    del own["manifest.json"]
    manifest = {**manifest, "members": own, **changes}
    text = json.dumps(manifest, sort_keys=True, indent=1).encode() + b"\n"
    return {**members, "manifest.json": text}


def zipped(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]], comment: bytes = b"") -> Path:
    """An archive of any form."""
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            archive.writestr(info, content)
        archive.comment = comment
    return path


def entry(name: str, content: bytes, **changes: Any) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o100644 << 16
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def renamed(to: str) -> Callable[[Path, Members], Path]:
    """A member of another name, with a manifest that fits."""

    def make(path: Path, members: Members) -> Path:
        changed = {k: v for k, v in members.items() if k != "run/checks.json"}
        return written(path, told({**changed, to: members["run/checks.json"]}))

    return make


def formed(**changes: Any) -> Callable[[Path, Members], Path]:
    """Members with another attribute."""
    return lambda path, members: zipped(path, [entry(n, c, **changes) for n, c in members.items()])


def twice(path: Path, members: Members) -> Path:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped(path, [*(entry(n, c) for n, c in members.items()), entry("run/spec.json", b"{}")])


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path, Members], Path]:
    """The bytes of a good bundle, changed."""

    def make(path: Path, members: Members) -> Path:
        good = written(path, members).read_bytes()
        path.write_bytes(change(good))
        return path

    return make


def count_of_members(good: bytes, count: int) -> bytes:
    end = bytearray(good[-22:])
    struct.pack_into("<HH", end, 8, count, count)
    return good[:-22] + bytes(end)


def with_list_of(good: bytes, length: int) -> bytes:
    end = bytearray(good[-22:])
    struct.pack_into("<L", end, 12, length)
    return good[:-22] + bytes(end)


def zip64_bomb(good: bytes) -> bytes:
    """A zip64 end that promises 2**40 members."""
    place = len(good) - 22
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    return (
        good[:-22]
        + end64
        + locator
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    )


def special(kind: str) -> Callable[[Path, Members], Path]:
    def make(path: Path, members: Members) -> Path:
        path.unlink(missing_ok=True)
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "zeros":
                path.symlink_to("/dev/zero")
            case "terabyte":
                with path.open("wb") as file:
                    file.truncate(2**40)
            case "folder":
                path.mkdir()
            case "text":
                path.write_text("PK")
            case "empty zip":
                zipped(path, [])
        return path

    return make


def lying(**changes: Any) -> Callable[[Path, Members], Path]:
    return lambda path, members: written(path, told(members, **changes))


def headline(members: Members, **changes: Any) -> dict[str, Any]:
    claimed = json.loads(members["manifest.json"])["headline"]
    return {**claimed, "white_box": {**claimed["white_box"], **changes}}


def other_bytes(name: str) -> Callable[[Path, Members], Path]:
    """A member that is changed, whose manifest still has the hash of before."""
    return lambda path, members: written(path, {**members, name: members[name][:-1] + b" "})


def nested(path: Path, members: Members) -> Path:
    return written(path, {**members, "manifest.json": b"[" * 100_000})


def key_twice(path: Path, members: Members) -> Path:
    text = members["manifest.json"].replace(b'"name":', b'"name": "other",\n "name":', 1)
    return written(path, {**members, "manifest.json": text})


def overlapping(path: Path, members: Members) -> Path:
    """The entry of the second member points at the first."""
    good = bytearray(written(path, members).read_bytes())
    start = struct.unpack_from("<L", good, len(good) - 6)[0]
    first = 46 + struct.unpack_from("<H", good, start + 28)[0]
    struct.pack_into("<L", good, start + first + 42, 0)
    path.write_bytes(bytes(good))
    return path


CASES: dict[str, Callable[[Path, Members], Path]] = {
    "a name that climbs": renamed("run/../../EXECUTED.json"),
    "an absolute name": renamed("/tmp/EXECUTED.json"),
    "a name with a drive": renamed("C:\\EXECUTED.json"),
    "a hidden name": renamed("run/x_adv/.hidden.safetensors"),
    "a folder deep in images": renamed("run/x_adv/a/b.safetensors"),
    "an analysis that climbs": renamed("run/analyses/../result.json"),
    "a module beside the records": renamed("run/numpy.py"),
    "a page": renamed("run/report.html"),
    "letters of other alphabets": renamed("run/x_adv/\u0661.safetensors"),
    "a link": formed(external_attr=0o120777 << 16),
    "a device": formed(external_attr=0o020666 << 16),
    "rights of its own": formed(external_attr=0o104755 << 16),
    "compressed members": formed(compress_type=zipfile.ZIP_DEFLATED),
    "a bomb": lambda path, members: zipped(
        path, [entry("manifest.json", bytes(10**7), compress_type=zipfile.ZIP_DEFLATED)]
    ),
    "a time": formed(date_time=(2026, 1, 2, 3, 4, 6)),
    "comments of members": formed(comment=b"hello"),
    "a member twice": twice,
    "names equal but for case": lambda path, members: written(
        path, told({**members, "run/SPEC.json": members["run/spec.json"]})
    ),
    "a comment of the archive": lambda path, members: zipped(
        path, [entry(n, c) for n, c in members.items()], b"x"
    ),
    "a program before it": raw(lambda good: b"#!/bin/sh\n" + good),
    "bytes after it": raw(lambda good: good + b"\0"),
    "bytes between members": raw(lambda good: good[:100] + b"\0" + good[100:]),
    "cut off": raw(lambda good: good[:-50]),
    "sixty thousand members that are not there": raw(lambda good: count_of_members(good, 60_000)),
    "a list of four gigabytes": raw(lambda good: with_list_of(good, 2**32 - 2)),
    "2**40 members": raw(zip64_bomb),
    "members that overlap": overlapping,
    "a pipe": special("pipe"),
    "a link to zeros": special("zeros"),
    "a terabyte": special("terabyte"),
    "a folder": special("folder"),
    "a text": special("text"),
    "no member": special("empty zip"),
    "no manifest": lambda path, members: written(
        path, {k: v for k, v in members.items() if k != "manifest.json"}
    ),
    "a manifest that is last": lambda path, members: written(
        path, {**{k: v for k, v in members.items() if k != "manifest.json"}, "manifest.json": b"{}"}
    ),
    "a manifest that is nested": nested,
    "a manifest with a key twice": key_twice,
    "a manifest of another kind": lying(format="other"),
    "a manifest of a later layout": lying(schema_version=2),
    "a manifest with a key of its own": lying(code="import os"),
    "a manifest that lists more": lambda path, members: written(
        path, {**members, "manifest.json": told({**members, "run/order.json": b""})["manifest.json"]}
    ),
    "a manifest of another spec": lying(spec_hash="0" * 64),
    "a manifest that calls it finished": lying(unfinished="Unfinished: not at all."),
    "a claim that the records do not make": lambda path, members: written(
        path, told(members, headline=headline(members, value=0.99))
    ),
    "a claim over more images": lambda path, members: written(
        path, told(members, headline=headline(members, examples=10_000))
    ),
    "a claim of infinity": lambda path, members: written(
        path, told(members, headline=headline(members, value=float("inf")))
    ),
    "changed records": other_bytes("run/records.jsonl"),
    "a changed spec": other_bytes("run/spec.json"),
    "no records": lambda path, members: written(
        path, told({k: v for k, v in members.items() if k != "run/records.jsonl"})
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_bundle_is_one_sentence_and_writes_nothing(
    name: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = CASES[name](tmp_path / "case.zip", members_of(packed))
    monkeypatch.chdir(here)

    def opens() -> None:
        with opened_bundle(path):
            pass

    # The temporary folder is removed through handles, whose names look as if they were in the current one.
    outcome = run_case(opens, writes=(tmp_path / "temporary", here), admitted=(UserError,))
    assert outcome.defects == []
    assert outcome.said, "it was opened"
    assert not list(here.iterdir())
    assert not list((tmp_path / "temporary").iterdir())
    assert not Path("/tmp/EXECUTED.json").exists()


NAMING = {
    "classifier": ("classifier", "trap:x"),
    "denoiser": ("denoiser", "os:system"),
    "data": ("data", "trap:x"),
    "purifier": ("purifier", "trap:x"),
    "gradient of an attacker": ("knowledge", "trap:x"),
    "a library that fetches": ("classifier", "robustbench"),
    "the Hub": ("data", "huggingface"),
}


@pytest.mark.parametrize("name", NAMING)
def test_code_that_a_bundle_names_is_not_imported(
    name: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged spec with all hashes made anew; the trap lies where modules are looked for."""
    part, named = NAMING[name]
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    run = tmp_path / "run"
    spec = json.loads((run / "spec.json").read_text())
    own = {"name": named, "options": {"command": "touch EXECUTED"} if "os" in named else {}}
    if part == "knowledge":
        spec["spec"][part][0]["gradient"] = named
    else:
        spec["spec"][part] = own
    if part == "purifier":
        spec["spec"]["denoiser"] = {"name": "none", "options": {}}
    respecced(run, spec)
    forged = bundle(run, tmp_path / "forged.zip").path
    (tmp_path / "trap.py").write_text("open('EXECUTED', 'w')\ndef x(*_, **__): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_typed()
    given = {k: v for k, v in PARTS.items() if k != part}
    if part == "purifier":
        del given["denoiser"]
    found = verify(forged, **given)
    assert found.verdict == "cannot be judged"
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("change", ["rows of a call", "draws of an image"])
def test_numbers_of_a_bundle_do_not_fill_the_memory(change: str, packed: Path, tmp_path: Path) -> None:
    """Calls of 2**30 rows that are filled up, and a million draws."""
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    run = RunDirectory(tmp_path / "run")
    if change == "rows of a call":
        records = [r for r in run.records() if r["row"] == "white_box" and r["example"] <= 102]
        how = {"micro_batch": 2**30, "deterministic": True, "threads": 1}
        ids, logits, _ = run.read_logits("white_box", 0, 100)[0]
        images = run.write_images("x", ids, torch.stack(list(run.read_images(records[0]["images"]).values())))
        stored = run.write_logits("white_box-0-100-102-3", ids, logits, how)
        run.append([{**r, "images": images.name} for r in records], [images, stored])
        assert verify(bundle(run, tmp_path / "b.zip").path, **PARTS, rows=["white_box"], fresh=0).stands
        return
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    spec["spec"]["draws"]["report"] = 10**6
    respecced(tmp_path / "run", spec)
    with pytest.raises(UserError, match="draws, its records have fewer"):
        verify(bundle(tmp_path / "run", tmp_path / "b.zip").path, **PARTS, fresh=0)


def respecced(run: Path, spec: dict[str, Any]) -> None:
    """Puts a changed spec in its place with every hash made anew."""
    examples = {k: v for k, v in spec["spec"]["examples"].items() if k != "count"}
    spec["hash"] = canonical_hash({**spec["spec"], "examples": examples})
    (run / "spec.json").write_text(json.dumps(spec))
    resealed(run, spec["hash"][:16])


def resealed(run: Path, short: str) -> None:
    """Makes the digests of records anew, as one who forges a run would."""
    lines = []
    for line in (run / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("digest", None)
        if "seal" in record:
            record["seal"]["spec"] = short
        lines.append(record)
    (run / "records.jsonl").unlink()
    journal = Journal(run / "records.jsonl", "", digests=True)
    group: list[dict[str, Any]] = []
    for record in lines:
        group.append(record)
        if "seal" in record:
            journal.append(group)
            group = []


def damaged(good: bytes, number: int) -> bytes:
    """A byte changed, a piece cut out, or a piece doubled."""
    choices = chooser(number)
    place, length = choices.randrange(len(good)), choices.randrange(1, 300)
    match number % 3:
        case 0:
            return good[:place] + bytes([good[place] ^ choices.randrange(1, 256)]) + good[place + 1 :]
        case 1:
            return good[:place] + good[place + length :]
        case _:
            return good[:place] + good[place : place + length] + good[place:]


def test_damaged_anywhere_is_one_sentence(packed: Path, tmp_path: Path) -> None:
    """No byte of a bundle can be changed without being noticed."""
    good, path, defects = packed.read_bytes(), tmp_path / "damaged.zip", []
    for number in range(120):
        bad = damaged(good, number)
        path.write_bytes(bad)

        def opens() -> None:
            with opened_bundle(path):
                pass

        outcome = run_case(opens, writes=(Path(tempfile.gettempdir()), Path.cwd()), admitted=(UserError,))
        defects += [f"{number}: {d}" for d in outcome.defects]
        if not outcome.said and bad != good:
            defects.append(f"{number}: opened")
    assert defects == []


def test_archive_beyond_four_gigabytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and places in zip64 fields, made by lowering where the library begins to use them."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    path = tmp_path / "large.zip"
    write_archive(path, [("a", b"x" * 10), ("b", b"y" * 100), ("c", b"z" * 200)])
    with archives.opened_archive(path) as archive:
        assert archive.sizes == {"a": 10, "b": 100, "c": 200}
        assert archive.read("c") == b"z" * 200
        with pytest.raises(UserError, match="more than 50"):
            archive.read("b", 50)


def test_manifest_of_the_package_is_canonical(packed: Path) -> None:
    text = members_of(packed)["manifest.json"]
    assert Manifest.model_validate_json(text).as_bytes() == text
    assert text.isascii()
