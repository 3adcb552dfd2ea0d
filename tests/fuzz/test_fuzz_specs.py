"""Every leaf of every published spec, replaced, dropped or retyped; damaged TOML texts; odd overrides.

A case reads the spec and makes every part of it that is no big model. It may succeed, or say one sentence.
"""

import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dbpkit.analyses.run import make_analysis
from dbpkit.attacks import make_attack
from dbpkit.data import load_dataset
from dbpkit.evaluation.quick_check import _shortened_spec
from dbpkit.experiment.build import attack_options, make_purifier, make_view, single_draw
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.options import checked_options
from dbpkit.foundation.spec import Strict, amount, as_toml, read_spec, spec_hash, validate
from dbpkit.models.networks import networks
from dbpkit.models.sources import asset, load_classifier, load_denoiser
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.results.protocols import chosen_protocol
from dbpkit.threats.pixels import make_threat
from dbpkit.training.objectives import make_objective
from dbpkit.training.spec import TrainingSpec
from tests.fuzz.harness import ODD, chooser, dropped, leaves, replaced, run_case
from tests.oracles import TinyClassifier, tiny_denoiser

SPECS = Path(__file__).parents[2] / "specs"
FILES = [asset("demo.toml"), *sorted(SPECS.rglob("*.toml"))]
FAR = ("diffusers", "huggingface")
"""Sources that would look for files on the network."""


class Case(NamedTuple):
    """One case: its name, what it tries, and the folder it may write to."""

    name: str
    run: Callable[[], Any]


def model_of(path: Path) -> type[Strict]:
    return TrainingSpec if path.parent.name == "train" else EvaluationSpec


def table_of(path: Path) -> dict[str, Any]:
    """The resolved spec, so that defaults are leaves too, and its analyses, which are no part of it."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    resolved = read_spec(path, model_of(path)).model_dump(mode="json")
    return resolved | ({"analyses": table["analyses"]} if "analyses" in table else {})


def tried(table: dict[str, Any], model: type[Strict], about: str = "") -> None:
    """Validates a table and makes its parts; sources only if the case is about them."""
    spec = validate(table, model, "fuzz")
    spec_hash(spec)
    if not has_null(table):
        validate(tomllib.loads(as_toml(spec.model_dump(mode="json"))), model, "fuzz")
    make: Any = make_training if isinstance(spec, TrainingSpec) else make_evaluation
    make(spec, about)


def has_null(tree: Any) -> bool:
    """Whether a list holds None, which JSON and Python have and TOML has not."""
    inner = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return (isinstance(tree, list) and None in tree) or any(has_null(v) for v in inner)


def make_evaluation(spec: EvaluationSpec, about: str) -> None:
    _shortened_spec(spec, 2)
    for attack in spec.attacks:
        make_attack(attack.name, attack_options(attack))
        make_attack(attack.name, single_draw(attack))
    make_threat(spec.threat.norm, amount(spec.threat.eps), spec.threat.options)
    purifier = make_purifier(spec.purifier, tiny_denoiser())
    model = PurifiedClassifier(purifier, TinyClassifier(), seed=spec.seed)
    for setting in spec.knowledge:
        view = make_view(model, setting.gradient, setting.gradient_options)
        setting.resolve().leaves_nothing_random(view.sites)
    chosen_protocol(spec.protocol)
    for name, options in spec.analyses.items():
        make_analysis(name, options)
    loaders: dict[str, Any] = {"data": load_dataset, "classifier": load_classifier, "denoiser": load_denoiser}
    source = getattr(spec, about, None)
    if about in loaders and source.name not in FAR:
        loaders[about](source.name, source.options)


def make_training(spec: TrainingSpec, about: str) -> None:
    make_objective(spec.objective, spec.objective_options)
    if spec.network is not None and spec.network.name != "diffusers":
        checked_options(networks.resolve(spec.network.name), spec.network.options, "network")


def leaf_cases(path: Path) -> Iterator[Case]:
    """Each leaf dropped, and replaced by every odd value and by the value of every other kind."""
    table, model = table_of(path), model_of(path)
    for leaf in leaves(table):
        where, about = ".".join(map(str, leaf)), str(leaf[0])
        yield Case(f"{where} dropped", partial(tried, dropped(table, leaf), model, about))
        for value in ODD:
            if value == "os:system" and leaf[-1] in ("norm", "gradient"):
                continue  # typed by the user, it is called as they ask, and fails as it does
            changed = replaced(table, leaf, value)
            yield Case(f"{where} = {value!r:.60}", partial(tried, changed, model, about))


def read_and_tried(file: Path, text: bytes, model: type[Strict], overrides: tuple[str, ...] = ()) -> None:
    file.write_bytes(text)
    spec = read_spec(file, model, overrides)
    (make_training if isinstance(spec, TrainingSpec) else make_evaluation)(spec, "")  # type: ignore[operator]


NOISE = (
    b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"\r", b"\r\n", b"\n\n", b'"', b"'", b"[", b"]", b"[[", b"{", b"}", b"=", b".",
    b"#", b",", b"9" * 4400, b"-",
    b"nan", b"1e999", b"\x1b[31m", b"\\u0000", b"\\ud800", b'"""', b"0x", b"False",
    b"1979-05-27", b"a.b.c = 1\n", b"[" * 300, b"\xe2\x80\xae", b" = ", b"options = { eot = 10 }\n",
)  # fmt: skip


def text_cases(path: Path, file: Path, count: int) -> Iterator[Case]:
    """Texts with a piece put in, cut out, doubled or moved."""
    text, model = path.read_bytes(), model_of(path)
    choices = chooser(len(text))
    lines = text.split(b"\n")
    for number in range(count):
        at, length = choices.randrange(len(text)), choices.randrange(1, 40)
        line = choices.randrange(len(lines))
        changed = (
            text[:at] + choices.choice(NOISE) + text[at:],
            text[:at] + text[at + length :],
            text[:at],
            b"\n".join([*lines[:line], lines[line], *lines[line:]]),
            b"\n".join(choices.sample(lines, len(lines))),
            text[:at] + bytes(choices.randrange(256) for _ in range(3)) + text[at:],
        )[number % 6]
        yield Case(f"{path.name} text {number}", partial(read_and_tried, file, changed, model))


def override_cases(path: Path, file: Path, count: int) -> Iterator[Case]:
    """Overrides of every leaf, and of places next to them, by odd texts."""
    table, model, text = table_of(path), model_of(path), path.read_bytes()
    choices = chooser(len(text) + 1)
    places = [".".join(map(str, leaf)) for leaf in leaves(table)]
    texts = [
        *map(str, ODD),
        "[1,", "{a=1}", "{a = {b = [1]}}", "'x'", '"', "1979-05-27", "0x" + "f" * 5000, "+1", "1_0",
        "true", "True", "None",
        "2/255", "\n", "a\nb = 1", "[" * 2000, "=", "#", "inf", "-nan", "embedded", "pgd",
    ]  # fmt: skip
    for _ in range(count):
        place = choices.choice(places)
        place = choices.choice(
            [place, place + ".x", place + ".0", place + ".-1", place.rpartition(".")[0] + ".9"]
        )
        override = f"{place}={choices.choice(texts)}"
        yield Case(override[:80], partial(read_and_tried, file, text, model, (override,)))


def judge(cases: Iterator[Case], folder: Path, share: float = 1.0) -> int:
    """Runs a seeded share of cases; returns how many, and fails with the defects of all."""
    choices, count, defects = chooser(7), 0, []
    for case in cases:
        if choices.random() < share:
            count += 1
            defects += [f"{case.name}: {d}" for d in run_case(case.run, writes=(folder,)).defects]
    assert not defects, f"{len(defects)} defects of {count} cases:\n" + "\n".join(defects[:5])
    return count


@pytest.fixture(autouse=True)
def _no_real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBPKIT_DATA", str(tmp_path / "none"))
    torch.manual_seed(0)


def test_leaves_of_every_spec(tmp_path: Path) -> None:
    total = sum(1 for path in FILES for _ in leaf_cases(path))
    assert judge((c for path in FILES for c in leaf_cases(path)), tmp_path, 4000 / total) > 3800


def test_texts_of_every_spec(tmp_path: Path) -> None:
    cases = (c for path in FILES for c in text_cases(path, tmp_path / "s.toml", 18))
    assert judge(cases, tmp_path) == 18 * len(FILES)


def test_overrides_of_every_spec(tmp_path: Path) -> None:
    cases = (c for path in FILES for c in override_cases(path, tmp_path / "s.toml", 18))
    assert judge(cases, tmp_path) == 18 * len(FILES)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_leaf_and_many_texts_and_overrides(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    judge(leaf_cases(path), tmp_path)
    judge(text_cases(path, file, 3000), tmp_path)
    judge(override_cases(path, file, 3000), tmp_path)
