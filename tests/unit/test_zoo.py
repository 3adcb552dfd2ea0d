"""The table of published models: complete, and found by name, size and digest; nothing is fetched unasked."""

import hashlib
import json
import sys
import types
from pathlib import Path

import pytest

from dbpkit import UserError
from dbpkit.cli import main
from dbpkit.foundation.packaged import specs
from dbpkit.models import zoo as module
from dbpkit.models.zoo import Found, ZooModel, download, look, named, zoo
from tests.reference import key_table

COUNTED = {
    "scoresde-vp-deep": "scoresde_vp_cifar10_ddpmpp_deep_continuous",
    "edm-cifar10-uncond-vp": "edm_cifar10_uncond_vp",
    "guided-diffusion-256": "guided_diffusion_256_uncond",
    "ddpm-port-cifar10": "hao_ddpm_cifar10",
    "wrn-28-10": "robustbench_standard_wrn28_10",
}
"""Models whose keys are listed."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process; returns its status and what it said."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dbpkit", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to look in, with an empty cache and an empty current folder."""
    here = tmp_path / "models"
    here.mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv(module.FOLDERS, str(here))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return here


def test_zoo_every_spec_with_placeholders_has_a_denoiser_and_a_classifier() -> None:
    needed = {name for name, path in specs().items() if "models are placeholders" in path.read_text("utf-8")}
    assert len(needed) > 15
    for kind in ("denoiser", "classifier"):
        assert needed == {s for m in zoo() if m.kind == kind for s in m.specs}


def test_zoo_names_and_files_are_unique() -> None:
    models = zoo()
    files = [name for model in models for name in model.files]
    assert len({m.name for m in models}) == len(models)
    assert len(set(files)) == len(files)
    assert all(m.files for m in models)


@pytest.mark.parametrize("name", COUNTED)
def test_zoo_counts_are_those_of_the_key_tables(name: str) -> None:
    table = key_table(COUNTED[name])
    assert f"{len(table)} tensors" in named(name).layout


def test_look_nothing_is_here(place: Path) -> None:
    assert {found.verdict for found in look(zoo())} == {"not found"}


def test_look_finds_by_name_in_a_folder_below_and_prefers_the_right_size(place: Path) -> None:
    model = ZooModel(**{**named("wrn-70-16").model_dump(), "bytes": 5})
    (place / "a").mkdir()
    (place / "a" / "wrn-70-16-dropout.pt").write_bytes(b"123")
    (found,) = look([model])
    assert (found.path, found.verdict) == (place / "a" / "wrn-70-16-dropout.pt", "3 bytes instead of 5")
    (place / "wrn-70-16-dropout.pt").write_bytes(b"12345")
    (found,) = look([model])
    assert (found.path, found.verdict) == (place / "wrn-70-16-dropout.pt", "found, its size agrees")


def test_look_digest_decides_where_it_is_known(place: Path) -> None:
    (place / "resnet-50").mkdir()
    (place / "resnet-50" / "weights.pt").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    row = named("resnet50-cifar").model_dump()
    for known, verdict in ((digest, "found, its sha256 agrees"), ("0" * 64, "another sha256 instead")):
        (found,) = look([ZooModel(**{**row, "sha256": known})], digests=True)
        assert (found.verdict, found.sha256) == (verdict, digest)
    (found,) = look([named("resnet50-cifar")])
    assert (found.verdict, found.sha256) == ("found by its name, 3 bytes", None)


def test_look_finds_a_folder_and_what_the_hub_has_cached(place: Path) -> None:
    cached = module.hub_cache() / "models--google--ddpm-cifar10-32" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    model = named("ddpm-cifar10")
    assert look([model])[0] == Found(model, cached, "found, a folder")
    own = place / "ddpm_ema_cifar10"
    own.mkdir()
    assert look([model])[0].path == own


def test_download_only_what_is_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    stub = types.ModuleType("huggingface_hub")
    stub.snapshot_download = lambda hub, **given: asked.append((hub, given)) or str(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    assert download(named("ddpm-cifar10")) == tmp_path
    assert asked == [("google/ddpm-cifar10-32", {"allow_patterns": ["*.json", "*.safetensors"]})]
    with pytest.raises(UserError, match=r"not on the Hugging Face Hub\. Get it from openai/guided-diffusion"):
        download(named("guided-diffusion-256"))

    def offline(hub: str, **given: object) -> str:
        raise OSError("no route\nto host")

    stub.snapshot_download = offline
    with pytest.raises(UserError, match=r"\(OSError: no route to host\). Fetch google/ddpm-cifar10-32 by"):
        download(named("ddpm-cifar10"))


def test_models_lists_and_never_fetches_unasked(run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download", lambda model: pytest.fail("not asked for"))
    status, listed, _ = run("models")
    assert status == 0
    assert all(model.name in listed for model in zoo())
    rows = json.loads(run("models", "cifar10-edm", "--json")[1])
    assert [row["name"] for row in rows] == ["edm-cifar10-uncond-vp", "wrn-28-10"]
    assert {row["path"] for row in rows} == {None}
    assert "2,211,383,297 bytes" in run("models", "guided-diffusion-256")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such"], "unknown model 'no-such'"),
        (["--download"], "needs the name of one model"),
        (["wrn-28-10", "--download"], "is not on the Hugging Face Hub"),
    ],
)
def test_models_mistakes_are_one_sentence(words: list[str], said: str, run, place: Path) -> None:
    status, _, wrong = run("models", *words)
    assert status == 2
    assert said in wrong
    assert wrong.count("\n") == 1
