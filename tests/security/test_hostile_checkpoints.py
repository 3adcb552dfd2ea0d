"""Hostile checkpoints are refused in a sentence; nothing in them is executed, imported, written or opened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbpkit.foundation.checkpoints import Record, Stored, read_checkpoint
from dbpkit.foundation.errors import UserError
from dbpkit.models.sources import load_classifier, load_denoiser
from tests.fuzz.harness import run_case
from tests.security.checkpoints import HARMLESS, ODD, RUNS, SPECIAL, good_files

REPOSITORY = Path(__file__).parents[2]
TRAP = "open({marker!r}, 'a').write('imported')\n"
FILES = {**RUNS, **ODD}
SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".t7", ".safetensors", ".bin")


def made(folder: Path) -> dict[str, Path]:
    """Every hostile file, each beside modules that leave a mark if they are imported."""
    found = {}
    for number, (name, content) in enumerate(FILES.items()):
        found[name] = folder / f"case{number}.pt"
        found[name].write_bytes(content)
    for number, (name, make) in enumerate(SPECIAL.items()):
        found[name] = folder / f"special{number}.pt"
        make(found[name])
    for name in ("trap", "evil", "dnnlib", "torch_utils", "networks"):
        (folder / f"{name}.py").write_text(TRAP.format(marker=str(folder / "EXECUTED")))
    return found


def test_hostile_files_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = made(tmp_path)
    assert len(files) >= 150
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(os.listdir(tmp_path)), set(sys.modules)  # noqa: PTH208
    defects = []
    for name, path in files.items():
        outcome = run_case(lambda path=path: read_checkpoint(path))
        defects += [f"{name}: {defect}" for defect in outcome.defects]
        if outcome.value is not None:
            defects.append(f"{name}: was read")
        elif path.name not in outcome.said or len(outcome.said) > 600 or not outcome.said.endswith("."):
            defects.append(f"{name}: says {outcome.said!r}")
    assert not defects, "\n".join(defects[:20])
    assert (set(os.listdir(tmp_path)), set(sys.modules)) == before  # noqa: PTH208


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_file_names_becomes_a_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text(TRAP.format(marker=str(tmp_path / "EXECUTED")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "harmless.pkl"
    path.write_bytes(HARMLESS[name])
    found = read_checkpoint(path).content
    assert isinstance(found, Record | str | Stored)
    assert not (tmp_path / "EXECUTED").exists()
    assert "trap" not in sys.modules
    assert "EXECUTED" not in repr(found) or isinstance(found, str)
    if name == "source code":
        assert "module_src" not in found.state


def test_opener_gets_no_further_than_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither calls nor records of strangers' classes become a model, whatever the file is called."""
    (tmp_path / "trap.py").write_text(TRAP.format(marker=str(tmp_path / "EXECUTED")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    programs = {kind: ODD[kind] for kind in ("TorchScript", "torch.export")}
    defects = []
    for number, (name, content) in enumerate({**RUNS, **HARMLESS, **programs}.items()):
        path = tmp_path / f"case{number}{SUFFIXES[number % len(SUFFIXES)]}"
        path.write_bytes(content)
        for load in (load_denoiser, load_classifier):
            outcome = run_case(lambda load=load, path=path: load(str(path)))
            defects += [f"{name}: {defect}" for defect in outcome.defects]
            if outcome.value is not None or path.name not in outcome.said:
                defects.append(f"{name}: {outcome.said!r}")
    assert not defects, "\n".join(defects[:10])
    assert not (tmp_path / "EXECUTED").exists()
    assert "trap" not in sys.modules


MOST_MIB = 400
"""What a hostile file may make the reader hold: the objects of two million steps."""

AUDITED = """
import re, sys
from pathlib import Path
from dbpkit.foundation.checkpoints import read_checkpoint
from dbpkit.foundation.errors import UserError
from dbpkit.models.sources import load_classifier, load_denoiser
from tests.security.checkpoints import HARMLESS, good_files
folder, seen, now = Path(sys.argv[1]), [], [None]
def hook(event, args):
    if now[0] is None:
        return
    if event == "open" and str(args[0]) == str(now[0]) and not args[2] & 0o1103:
        return  # the file itself, for reading alone
    if event in ("object.__getattr__", "object.__setattr__", "sys._getframe", "builtins.id") or (
        event == "import" and args[0].startswith("encodings.")
    ):
        return
    seen.append((now[0].name, event, repr(args)[:200]))
for name, content in HARMLESS.items():
    (folder / f"harmless-{name}".replace(" ", "-")).write_bytes(content)
for name, content in good_files().items():
    (folder / f"good-{name}".replace(" ", "-")).write_bytes(content)
def held(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
sys.addaudithook(hook)
said, before = 0, held("VmRSS")
for path in sorted(folder.iterdir()):
    if path.suffix == ".py":
        continue
    now[0] = path
    try:
        read_checkpoint(path)
    except UserError as error:
        said += 1
    now[0] = None
print(said, seen)
print(held("VmHWM") - before)
"""


@pytest.mark.slow
def test_hostile_files_make_the_system_do_nothing(tmp_path: Path) -> None:
    """An audit hook sees every import, opened file, program and socket of a process of its own."""
    refused = len([path for path in made(tmp_path).values() if path.is_symlink() or path.exists()])
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said, held = done.stdout.splitlines()
    assert said == f"{refused} []"
    assert int(held) < MOST_MIB
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("kind", ["torch zip", "legacy torch", "pickle", "safetensors"])
def test_file_that_is_cut_off_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    """At every seventh byte, and at every one of the last hundred."""
    path, content = tmp_path / "cut.pt", good_files()[kind]
    path.write_bytes(content)
    assert read_checkpoint(path).container == kind
    for length in sorted({*range(0, len(content), 7), *range(len(content) - 100, len(content))}):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"^cannot read '.*cut\.pt': [^\n]*\.$"):
            read_checkpoint(path)
