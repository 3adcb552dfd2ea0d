"""What a stranger may send: files and directories that would run, write, hang, crash or fill the memory.

Every one is given to the commands that read its kind. Nothing of it is executed or imported, nothing is
written outside the folder a command was given, and the outcome is a result or one sentence.
"""

import gzip
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import dbpkit.foundation.registry
from dbpkit.cli import app
from dbpkit.cli.listing import REGISTRIES
from dbpkit.data import load_dataset
from dbpkit.evaluation.run import evaluate
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from dbpkit.models.denoisers import denoiser_adapters, from_pretrained
from dbpkit.models.weights import load_weights
from dbpkit.results.layout import canonical_hash
from tests.fuzz.harness import run_case
from tests.unit.data.test_cifar import ARRAY, BOMBS, UINT8

REPOSITORY = Path(__file__).parents[2]
TRAP = "open({marker!r}, 'a').write(__name__ + ' ')\n\ndef x(*_, **__):\n    return None\n"
PLANTED = (
    "numpy",
    "sitecustomize",
    "usercustomize",
    "dbpkit",
    "torch",
    "json",
    "PIL",
    "tomllib",
    "typer",
    "trap",
)


class Case(NamedTuple):
    """One hostile file or directory, and what is done with it.

    Attributes:
        name: what it is.
        make: makes it in an empty folder.
        act: reads it there.
        writes: whether the command may write into the folder ``out`` in it.
    """

    name: str
    make: Callable[[Path], None]
    act: Callable[[Path], Any]
    writes: bool = False


def cli(*arguments: str) -> Callable[[Path], Any]:
    """A command of the program, ``{}`` standing for the case's folder."""

    def act(folder: Path) -> Any:
        words = [a.replace("{}", str(folder)) for a in arguments]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return act


def content(name: str, data: bytes) -> Callable[[Path], None]:
    """Makes one file."""
    return lambda folder: (folder / name).write_bytes(data) and None


# ------------------------------------------------------------------ weights


def described(**changes: Any) -> bytes:
    """A weights file with a chosen description."""
    fields: dict[str, Any] = {
        "kind": "denoiser", "network": "unet", "options": {}, "denoiser": "edm", "denoiser_options": {},
        "image_shape": [3, 8, 8], "class_names": [],
    }  # fmt: skip
    about = {"format": "dbpkit-weights-1", "architecture": {**fields, **changes}}
    return save({"w": torch.zeros(1)}, {"dbpkit": json.dumps(about)})


def header(text: bytes, length: int | None = None) -> bytes:
    """The beginning of a safetensors file."""
    return struct.pack("<Q", len(text) if length is None else length) + text


COMMAND = {"command": "touch EXECUTED", "cmd": "touch EXECUTED", "args": "touch EXECUTED", "source": "1"}
WEIGHTS: dict[str, bytes] = {
    "network os:system": described(network="os:system", options=COMMAND),
    "network of a classifier": described(kind="classifier", network="os:system", options=COMMAND),
    "denoiser adapter": described(denoiser="os:system", denoiser_options=COMMAND),
    "builtins": described(network="builtins:exec", options={"source": "open('EXECUTED', 'w')"}),
    "subprocess": described(network="subprocess:run", options={"args": ["touch", "EXECUTED"]}),
    "torch.load": described(network="torch:load", options={"f": "evil.pt", "weights_only": False}),
    "a planted module": described(network="trap:x"),
    "a module of the package": described(
        network="dbpkit.foundation.registry:import_module", options={"name": "trap"}
    ),
    "options that are code": described(options={"channels": "__import__('os').system('touch EXECUTED')"}),
    "a network of 2**60 weights": described(options={"channels": [2**30, 2**30], "blocks": [1, 1]}),
    "a billion blocks": described(options={"channels": [8], "blocks": [10**9]}),
    "names that steer a terminal": described(network="\x1b]0;owned\x07\x1b[2J", class_names=["\x1b[31m"]),
    "a name of a megabyte": described(network="x" * 10**6),
    "deep nesting": save({}, {"dbpkit": "[" * 200_000}),
    "a pickle by another name": b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch EXECUTED\x85R.",
    "a header of 2**63": header(b"{}", 2**63),
    "a tensor beyond the file": header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,1099511627776]}}'),
    "overlapping tensors": header(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
    )
    + bytes(6),
}  # fmt: skip


def torch_zip(folder: Path) -> None:
    """What torch.save writes, under the name of a safetensors file: a zip with a pickle in it."""
    with zipfile.ZipFile(folder / "case.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", WEIGHTS["a pickle by another name"])
        archive.writestr("archive/bomb", bytes(10**7))


def sparse(name: str) -> Callable[[Path], None]:
    """Makes a file of a terabyte that takes no space."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(2**40)

    return make


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a zip bomb": torch_zip,
    "a terabyte": sparse("case.safetensors"),
    "a pipe": lambda folder: os.mkfifo(folder / "case.safetensors"),
    "a folder": lambda folder: (folder / "case.safetensors").mkdir(),
    "a link to zeros": lambda folder: (folder / "case.safetensors").symlink_to("/dev/zero"),
    "a link to itself": lambda folder: (folder / "case.safetensors").symlink_to("case.safetensors"),
    "a link to a text": lambda folder: (folder / "case.safetensors").symlink_to("/etc/passwd"),
}


def weights_cases() -> Iterator[Case]:
    """Every weights file by the Python function, and some by the commands."""
    path = "case.safetensors"
    for name, data in WEIGHTS.items():
        yield Case(f"weights: {name}", content(path, data), lambda f: load_weights(f / path))
    for name, make in SPECIAL.items():
        yield Case(f"weights: {name}", make, lambda f: load_weights(f / path))
    hostile = content(path, WEIGHTS["network os:system"])

    def with_image(folder: Path) -> None:
        hostile(folder)
        Image.new("RGB", (8, 8)).save(folder / "a.png")

    purify = cli("purify", "{}/a.png", "--denoiser", "{}/case.safetensors", "--out", "{}/out")
    yield Case("weights: purify", with_image, purify, writes=True)
    yield Case("weights: quality", hostile, cli("quality", "{}/case.safetensors"))

    def with_spec(folder: Path) -> None:
        hostile(folder)
        (folder / "spec.toml").write_text(
            f'denoiser = {{name = "weights", options = {{path = "{folder / path}"}}}}\n'
        )

    run = cli("evaluate", "{}/spec.toml", "--out", "{}/out")
    yield Case("weights: evaluate", with_spec, run, writes=True)


# ------------------------------------------------------------------ other files of networks


class Writes(nn.Module):
    """What TorchScript may do."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        if return_features:
            torch.save(x, "EXECUTED")  # noqa: TID251 - what must not run
        return x


def diffusers_folder(**changes: Any) -> Callable[[Path], None]:
    """Makes a diffusers folder whose config.json has been changed."""

    def make(folder: Path) -> None:
        config = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"w": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")

    return make


def index_of_a_pickle(folder: Path) -> None:
    """A sharded network whose index names a pickle."""
    diffusers_folder()(folder)
    (folder / "evil.bin").write_bytes(WEIGHTS["a pickle by another name"])
    index = {"metadata": {}, "weight_map": {"w": "evil.bin"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def network_cases() -> Iterator[Case]:
    """TorchScript, and diffusers' folders."""

    def script(folder: Path) -> None:
        torch.jit.script(Writes()).save(str(folder / "inception-2015-12-05.pt"))

    quality = cli("quality", "embedded", "--inception", "{}/inception-2015-12-05.pt", "--images", "2")
    yield Case("TorchScript that writes", script, quality)
    folders: dict[str, Callable[[Path], None]] = {
        "a class of its own": diffusers_folder(_class_name="trap.Network", auto_map={"AutoModel": "trap.x"}),
        "an auto_map": diffusers_folder(auto_map={"AutoModel": "trap.x"}, custom_pipeline="trap"),
        "quantised": diffusers_folder(quantization_config={"quant_method": "trap"}),
        "channels without end": diffusers_folder(block_out_channels=[2**40] * 4),
        "blocks of its own": diffusers_folder(down_block_types=["trap.x"] * 4),
        "an index of a pickle": index_of_a_pickle,
    }
    for name, make in folders.items():
        yield Case(f"diffusers: {name}", make, lambda f: from_pretrained(str(f)))


# ------------------------------------------------------------------ data and images


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A grey PNG that says it has this size; its pixels are two zero bytes."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return start + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(2))) + chunk(b"IEND", b"")


TYPE_WITH_FIELDS = (
    b"\x80\x02}(U\x04data" + ARRAY + b"(K\x01K\x01M\x00\x0c\x86" + UINT8
    + b"(K\x03U\x01|N(U\x01at}U\x01a(" + UINT8 + b"\x8a\x04\x00\x00\x00\x7ftsK\x08K\x01K\x1btb\x89U\x00tbu."
)  # fmt: skip
CIFAR = {
    "a call": b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch EXECUTED\x85R.",
    "a type that the file fills": TYPE_WITH_FIELDS,
    **{
        name: BOMBS[name]
        for name in ("builtins", "an object", "a state for a type", "an array of 2**60 bytes")
    },
}
IDX = "t10k-images-idx3-ubyte.gz"
IMAGES = {
    "a picture of 2**62 pixels": png(2**31 - 1, 2**31 - 1),
    "a picture of 10**10 pixels": png(10**5, 10**5),
    "a text of a gigabyte": png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))),
    "a page by another name": b"<html><script>alert(1)</script></html>",
    "a drawing that loads": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(EXECUTED) (w) file closefile\n",
    "nothing": b"",
}


def data_cases() -> Iterator[Case]:
    """CIFAR batches, images and folders of images."""
    for name, data in CIFAR.items():

        def batch(folder: Path, data: bytes = data) -> None:
            (folder / "cifar-10-batches-py").mkdir()
            (folder / "cifar-10-batches-py" / "test_batch").write_bytes(data)
            (folder / "cifar-10-batches-py" / "batches.meta").write_bytes(b"}U\x0blabel_names](U\x01aes.")

        yield Case(
            f"CIFAR: {name}", batch, lambda f: load_dataset("cifar10", {"root": str(f), "verify": False})
        )
    bomb = content(IDX, gzip.compress(bytes(2**24), 1) * 17)  # 1 MB that become 285
    for name, make in {"a terabyte": sparse(IDX), "a bomb": bomb}.items():

        def idx(folder: Path, make: Callable[[Path], None] = make) -> None:
            (folder / "fashion-mnist").mkdir()
            make(folder / "fashion-mnist")

        yield Case(
            f"Fashion-MNIST: {name}",
            idx,
            lambda f: load_dataset("fashion_mnist", {"root": str(f), "verify": False}),
        )
    purify = cli("purify", "{}/a.png", "--denoiser", "tests.parts:gaussian_denoiser", "--out", "{}/out")
    for name, data in IMAGES.items():
        yield Case(f"image: {name}", content("a.png", data), purify, writes=True)
    yield Case("image: a pipe", lambda f: os.mkfifo(f / "a.png"), purify, writes=True)
    yield Case("image: a link to zeros", lambda f: (f / "a.png").symlink_to("/dev/zero"), purify, writes=True)

    def classes(folder: Path) -> None:
        for number, data in enumerate(IMAGES.values()):
            (folder / "a").mkdir(exist_ok=True)
            (folder / "a" / f"{number}.png").write_bytes(data)
        (folder / "b").symlink_to(folder)

    yield Case("data: a folder", classes, lambda f: load_dataset("folder", {"path": str(f)}))

    def script(folder: Path) -> None:
        (folder / f"{folder.name}.py").write_text("open('EXECUTED', 'w')\n")

    yield Case("data: a script", script, lambda f: load_dataset("huggingface", {"path": str(f)}))


# ------------------------------------------------------------------ run directories


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run of registered parts only."""
    spec = {
        "purifier": {"sampler": "one_step"}, "knowledge": ["white_box"], "draws": {"report": 1, "select": 1},
        "attacks": [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
        "examples": {"count": 2, "order": "file"},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("made") / "run"
    evaluate(validate(spec, EvaluationSpec, "tiny"), path)
    return path


OLD = REPOSITORY / "tests" / "golden" / "run-schema-1"
"""A run whose files no hashes bind to each other, so that a stranger could change any of them."""


def spec_of(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Takes the old run instead, and changes its spec.json and the hash in it."""

    def make(run: Path) -> None:
        shutil.rmtree(run)
        shutil.copytree(OLD, run)
        stored = json.loads((run / "spec.json").read_text())
        change(stored["spec"])
        stored["hash"] = canonical_hash(stored["spec"])
        (run / "spec.json").write_text(json.dumps(stored))

    return make


def linked(name: str, target: str) -> Callable[[Path], None]:
    """Replaces a file or folder of a run by a link."""

    def make(run: Path) -> None:
        path = run / name
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def piped(name: str) -> Callable[[Path], None]:
    """Replaces a file of a run by a pipe."""

    def make(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return make


def other_shard(name: str) -> Callable[[Path], None]:
    """Takes the old run instead, and changes the files that its records name."""

    def make(run: Path) -> None:
        shutil.rmtree(run)
        shutil.copytree(OLD, run)
        lines = (run / "records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            if "images" in record:
                record["images"] = name
        (run / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    return make


LEAVES: dict[str, Callable[[dict[str, Any]], None]] = {
    "data": lambda s: s.update(data={"name": "trap:x", "options": {}}),
    "classifier": lambda s: s.update(classifier={"name": "os:system", "options": COMMAND}),
    "denoiser": lambda s: s.update(denoiser={"name": "trap:x", "options": {}}),
    "sampler": lambda s: s["purifier"].update(sampler="trap:x"),
    "threat": lambda s: s["threat"].update(norm="trap:x"),
    "attack": lambda s: s["attacks"][0].update(name="trap:x"),
    "loss": lambda s: s["attacks"][0]["options"].update(loss="trap:x"),
    "gradient": lambda s: s["knowledge"][0].update(gradient="trap:x"),
    "protocol": lambda s: s.update(protocol="trap:x"),
}
OUTSIDE = "../../../../../../../../etc/passwd"
RUNS: dict[str, Callable[[Path], None]] = {
    **{f"import path of {leaf}": spec_of(change) for leaf, change in LEAVES.items()},
    "images outside": other_shard(OUTSIDE),
    "images at a path": other_shard("/etc/passwd"),
    "images linked": linked("x_adv", "/etc"),
    "spec linked": linked("spec.json", "/etc/passwd"),
    "records linked to zeros": linked("records.jsonl", "/dev/zero"),
    "records are a pipe": piped("records.jsonl"),
    "records of a terabyte": lambda run: sparse("records.jsonl")(run),
    "sessions are a pipe": piped("env.json"),
    "picture is a pickle": lambda run: content("strip.safetensors", WEIGHTS["a pickle by another name"])(run),
    "picture of a terabyte": lambda run: sparse("strip.safetensors")(run),
    "checks are a link to zeros": linked("checks.json", "/dev/zero"),
    "analyses in a circle": linked("analyses/a", ".."),
}


def run_cases(run: Path) -> Iterator[Case]:
    """Every hostile run directory by every command that reads one."""
    for name, change in RUNS.items():

        def make(folder: Path, change: Callable[[Path], None] = change) -> None:
            shutil.copytree(run, folder / "run")
            change(folder / "run")

        commands = (
            ["show", "{}/run"],
            ["findings", "{}/run"],
            ["compare", "{}/run", str(run)],
            ["replay", "{}/run", "--example", "0"],
            ["replay", "{}/run", "--example", "100"],
        )

        def act(folder: Path, commands: Any = commands) -> None:
            for command in commands:
                outcome = run_case(lambda command=command: cli(*command)(folder))
                assert not outcome.defects, f"{command[0]}: {outcome.defects[0]}"

        yield Case(f"run: {name}", make, act)
    spec = "\n".join(f'{name} = "trap:x"' for name in ("data", "classifier", "denoiser", "protocol"))
    yield Case("spec: shown", content("spec.toml", spec.encode()), cli("show", "{}/spec.toml"))
    yield Case("spec: a pipe", lambda f: os.mkfifo(f / "spec.toml"), cli("show", "{}/spec.toml"))
    yield Case("spec: a terabyte", sparse("spec.toml"), cli("show", "{}/spec.toml"))


# ------------------------------------------------------------------ the set


def all_cases(run: Path) -> list[Case]:
    """Every hostile file and directory."""
    return list(itertools.chain(weights_cases(), network_cases(), data_cases(), run_cases(run)))


def traps(folder: Path) -> None:
    """Modules that leave a mark if anything imports them."""
    for name in PLANTED:
        (folder / f"{name}.py").write_text(TRAP.format(marker=str(folder / "EXECUTED")))


@pytest.fixture
def nobody_has_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process one in which no import path has been typed."""
    monkeypatch.setattr(dbpkit.foundation.registry, "_trusted", set())
    for registry in (*REGISTRIES.values(), denoiser_adapters):
        monkeypatch.setattr(registry, "_typed", set())


def test_hostile_set_is_read_and_never_obeyed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody_has_typed: None
) -> None:
    cases = all_cases(run)
    assert len({case.name for case in cases}) == len(cases) >= 50
    defects = []
    before = set(sys.modules)
    for number, case in enumerate(cases):
        folder = tmp_path / f"case{number}"
        folder.mkdir()
        case.make(folder)
        traps(folder)
        monkeypatch.chdir(folder)
        there = sorted(folder.rglob("*"))
        allowed = [folder / "out"] if case.writes else []
        outcome = run_case(lambda case=case, folder=folder: case.act(folder), writes=allowed)
        defects += [f"{case.name}: {defect}" for defect in outcome.defects]
        left = [p for p in folder.rglob("*") if p not in there and "out" not in p.parts]
        defects += [f"{case.name}: left {path.name}" for path in left]
    monkeypatch.chdir(REPOSITORY)
    assert not defects, "\n".join(defects[:5])
    assert "trap" not in set(sys.modules) - before
    assert not list(tmp_path.rglob("EXECUTED"))


ALONE = ("CIFAR", "image", "TorchScript", "weights: a tensor", "weights: overlapping", "weights: a zip")
"""Cases that ended the process before they were refused, or could."""


def run_alone(folder: Path) -> None:
    """Runs the cases that could end a process, in this one, and says which is at work."""
    for number, case in enumerate([*weights_cases(), *network_cases(), *data_cases()]):
        if case.name.startswith(ALONE):
            sys.stdout.write(f"{case.name}\n")
            sys.stdout.flush()
            (folder / str(number)).mkdir()
            case.make(folder / str(number))
            os.chdir(folder / str(number))
            assert not run_case(lambda case=case: case.act(Path.cwd()), writes=[folder]).defects


def test_hostile_set_ends_no_process(tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path\nfrom {__name__} import run_alone\nrun_alone(Path({str(tmp_path)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 15


@pytest.mark.parametrize("command", [["show", "."], ["findings", "."], ["list", "samplers"]])
def test_program_started_in_a_hostile_folder_imports_nothing_of_it(
    command: list[str], run: Path, tmp_path: Path
) -> None:
    """``python -m`` looks for modules in the current folder first, until the package says otherwise."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    traps(folder)
    (folder / "dbpkit.py").unlink()  # Python itself finds this one, before any line of the package
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "dbpkit.cli", *command],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (folder / "EXECUTED").exists()
