"""A run becomes the same bytes wherever it is packed, with what it needs and nothing else."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from dbpkit import RunDirectory, UserError
from dbpkit.bundles.manifest import _OF_THE_PACKAGE, names_in
from dbpkit.bundles.opening import opened_bundle
from dbpkit.bundles.packing import bundle
from dbpkit.data.dataset import datasets
from dbpkit.models.sources import classifier_sources, denoiser_sources
from dbpkit.results.summary import summarise
from tests.bundled import REPOSITORY


def test_bytes_depend_on_neither_time_order_rights_nor_place(
    finished: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / "another-name"
    before = os.umask(0o077)
    try:
        for file in sorted(finished.rglob("*"), reverse=True):
            if file.is_file():
                target = other / file.relative_to(finished)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                os.utime(target, (10**9, 10**9))
                target.chmod(0o700)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TZ", "Pacific/Auckland")
        again = bundle("elsewhere/another-name", "b.zip")
    finally:
        os.umask(before)
    assert again.path.read_bytes() == packed.read_bytes()
    assert again.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()


def test_members_are_those_of_the_run_without_pages_pictures_and_clean_images(
    finished: Path, packed: Path
) -> None:
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        for name, told in manifest["members"].items():
            content = (finished / name.removeprefix("run/")).read_bytes()
            assert archive.read(name) == content
            assert (told["bytes"], told["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert set(names) == {"manifest.json", *manifest["members"]}
    kinds = {name.split("/")[1] for name in names[1:]}
    assert kinds == {"spec.json", "env.json", "checks.json", "records.jsonl", "x_adv", "logits"}
    headline = summarise(RunDirectory(finished)).row("white_box").headline
    assert manifest["headline"]["white_box"]["value"] == pytest.approx(headline.value, abs=1e-6)
    assert manifest["spec_hash"] == RunDirectory(finished).spec()["hash"]
    assert manifest["names"]["code"] == [
        "tests.parts:ChannelMean", "tests.parts:data", "tests.parts:gaussian_denoiser",
    ]  # fmt: skip
    assert str(finished.parent) not in packed.read_bytes().decode("latin1")


def test_opened_bundle_is_the_run(finished: Path, packed: Path) -> None:
    with opened_bundle(packed) as opened:
        assert opened.run.records() == RunDirectory(finished).records()
        assert opened.summary.as_json() == summarise(RunDirectory(finished)).as_json()
        place = opened.run.path
        assert (place / "x_adv").is_dir()
    assert not place.exists()
    with opened_bundle(packed, light=True) as opened:
        assert not (opened.run.path / "x_adv").exists()
        assert opened.summary.name == "tiny"


def test_unfinished_run_is_refused_or_says_so(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:-2]))  # the last unit
    with pytest.raises(UserError, match=r"is not packed\. Unfinished: .* --unfinished"):
        bundle(run)
    made = bundle(run, unfinished=True)
    assert made.manifest.unfinished.startswith("Unfinished:")
    with opened_bundle(made.path) as opened:
        assert opened.manifest.unfinished == made.manifest.unfinished


def test_analysis_is_packed_without_its_records(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    from dbpkit.results.analysis import AnalysisRecords, AnalysisResult

    records = AnalysisRecords(RunDirectory(run), "eot")
    records.claim({"options": {}, "hashes": {}})
    records.append("0", [1.0])
    records.write_result(AnalysisResult("eot", "EoT", ["A sentence."], [], []))
    names = bundle(run).manifest.members
    assert {n for n in names if "analyses" in n} == {
        "run/analyses/eot/settings.json", "run/analyses/eot/result.json",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["x_adv", "logits"])
def test_changed_or_missing_image_is_refused(kind: str, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    file = sorted((run / kind).iterdir())[0]
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="is not the file its records were made with"):
        bundle(run)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        bundle(run)


def test_link_and_no_run_and_folder_as_target_are_refused(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "checks.json").rename(tmp_path / "checks.json")
    (run / "checks.json").symlink_to(tmp_path / "checks.json")
    with pytest.raises(UserError, match="links are not packed"):
        bundle(run)
    for other in (tmp_path, tmp_path / "none", tmp_path / "checks.json"):
        with pytest.raises(UserError, match=r"is not a run directory: it has no spec\.json"):
            bundle(other)
    shutil.copy(finished / "spec.json", tmp_path)
    with pytest.raises(UserError, match="holds no result of an evaluation"):
        bundle(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        bundle(finished, tmp_path)


def test_without_a_name_the_file_has_the_whole_name_of_the_run(finished: Path, tmp_path: Path) -> None:
    for name in ("mine.make-first", "mine.make-second"):
        shutil.copytree(finished, tmp_path / name)
        assert bundle(tmp_path / name).path == tmp_path / f"{name}.zip"


def test_names_that_remain_are_told() -> None:
    spec = {
        "name": "my/title",
        "threat": {"norm": "linf", "eps": "8/255"},
        "classifier": {"name": "models/mine.safetensors", "options": {}},
        "data": {"name": "folder", "options": {"root": "/home/ann/pictures"}},
        "denoiser": {"name": "mine:denoiser"},
    }
    said = ["cannot read '/home/ann/pictures/a.png'", 'in "/opt/x/y.py", line 3', "https://a.org/b/c 1/2/3"]
    found = names_in(spec, said)
    assert found.code == ["mine:denoiser"]
    assert found.paths == ["/home/ann/pictures", "models/mine.safetensors"]
    assert found.elsewhere == ["/opt/x/y.py"]


def test_names_without_a_slash_are_told_too() -> None:
    spec = {
        "data": {"name": "folder", "options": {"path": "patients", "size": 32}},
        "classifier": {"name": "embedded", "options": {}},
        "denoiser": {"name": "my-unet", "options": {}},
    }
    assert names_in(spec, []).paths == ["my-unet", "patients"]


def test_names_of_the_package_are_those_that_it_registers() -> None:
    registries = (datasets, classifier_sources, denoiser_sources)
    own = {n for r in registries for n in r if r.get(n).__module__.startswith("dbpkit.")}
    assert own == _OF_THE_PACKAGE


def test_bytes_of_a_frozen_run_are_those_of_another_machine(tmp_path: Path) -> None:
    """Made elsewhere, once; a change of this number is a change of the layout."""
    made = bundle(REPOSITORY / "tests" / "golden" / "run-schema-2", tmp_path / "frozen.zip")
    assert made.sha256 == "7aff30ba390f8cc79110de56a4bbe2da9e4924927f63d2d053ebda3449d6fdfc"
