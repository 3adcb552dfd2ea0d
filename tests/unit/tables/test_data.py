"""The published tables: numbers are those of the papers, typed here again, and mini runs are affordable."""

from functools import cache

import pytest

from dbpkit.analyses.analysis import Unit, analyses
from dbpkit.purification.samplers import make_sampler
from dbpkit.tables.job import Job
from dbpkit.tables.layers import Placed, resolve
from dbpkit.tables.table import load_table, table_names

THREE = ("clean", "linf", "l2")
SIX = tuple(f"{model}-{what}" for model in ("vanilla", "addt") for what in THREE)
NFE = tuple(f"nfe-{n}" for n in (5, 10, 20, 50, 100))

TRIPLES = {
    "liu-sota": """
        none 95.12 0.00 1.46 | ddim 88.38 42.19 70.02 | ddim-addt 88.77 46.48 71.19 | gdmp 91.41 40.82 69.63
        gdmp-mse 91.80 40.97 70.02 | gdmp-ssim 92.19 38.18 68.95 | ddpm 85.94 47.27 69.34
        ddpm-addt 85.64 51.46 70.12 | coup 90.33 50.78 71.19 | diffpure 89.26 55.96 75.78
        diffpure-addt 89.94 62.11 76.66 | edm 86.43 62.50 76.86 | edm-addt 86.33 66.41 79.16""",
}
"""Rows of clean, Linf and L2."""

SEXTETS = {
    "liu-nfe-ddpm": """
        nfe-5 49.51 21.78 36.13 59.96 30.27 41.99 | nfe-10 73.34 36.72 55.47 78.91 43.07 62.97
        nfe-20 81.45 45.21 65.23 83.89 48.44 69.82 | nfe-50 85.54 46.78 68.85 85.45 50.20 69.04
        nfe-100 85.94 47.27 69.34 85.64 51.46 70.12""",
    "liu-nfe-ddpm-cifar100": """
        nfe-5 17.29 3.71 9.28 21.78 6.25 13.77 | nfe-10 34.08 10.55 19.24 40.62 14.55 27.25
        nfe-20 48.05 17.68 30.66 53.32 18.65 36.13 | nfe-50 55.57 20.02 37.70 59.47 22.75 40.72
        nfe-100 57.52 20.41 37.89 59.18 23.73 41.70""",
    "liu-nfe-ddim": """
        nfe-5 89.65 42.19 68.65 88.57 47.27 70.61 | nfe-10 88.96 43.16 67.58 88.18 47.85 70.61
        nfe-20 87.89 41.70 69.24 88.67 48.63 69.73 | nfe-50 88.96 42.48 68.85 88.57 46.68 69.24
        nfe-100 88.38 42.19 70.02 88.77 46.48 71.19""",
    "liu-nfe-ddim-cifar100": """
        nfe-5 62.11 15.43 35.74 62.79 17.58 38.87 | nfe-10 62.21 15.33 36.52 64.45 20.02 39.26
        nfe-20 63.67 15.62 37.89 65.23 18.65 40.62 | nfe-50 62.40 16.31 37.79 63.87 19.14 39.94
        nfe-100 63.28 15.23 36.62 66.02 18.85 39.84""",
    "liu-transfer-ddpm": """
        vgg-16 84.77 41.99 66.89 85.06 46.09 67.87 | resnet-50 83.11 44.04 67.58 83.84 48.14 67.87
        wrn-28-10 85.94 47.27 69.34 85.64 51.46 70.12 | wrn-70-16 88.43 48.93 70.31 87.84 52.54 70.70
        vit-b 85.45 45.61 69.53 85.25 48.63 69.92""",
    "liu-transfer-ddim": """
        vgg-16 87.16 29.00 61.82 87.55 35.06 66.11 | resnet-50 86.04 31.74 62.11 86.57 38.77 65.82
        wrn-28-10 88.96 43.16 67.58 88.18 47.85 70.61 | wrn-70-16 84.40 39.16 68.36 84.96 47.66 69.14
        vit-b 88.77 34.38 65.72 88.48 41.02 68.65""",
    "liu-transfer-edm": """
        wrn-28-10 86.43 62.50 76.86 86.33 66.41 79.16 | wrn-70-16 86.62 65.62 76.46 86.43 69.63 78.91""",
    "liu-edm": "sde 86.43 62.50 76.86 86.33 66.41 79.16 | ode 87.99 60.45 75.49 87.99 64.16 77.15",
    "liu-corrector": """
        plain 89.26 55.96 75.78 89.94 62.11 76.66 | corrector 85.25 59.77 74.22 85.55 65.23 76.66""",
    "liu-tiny-imagenet": """
        ddpm 57.13 11.82 46.68 56.15 13.57 48.54 | ddim 60.35 4.79 39.75 60.45 5.86 40.82
        edm 57.03 19.14 46.00 56.45 20.61 47.95""",
    "liu-autoattack-addt": """
        diffpure 89.26 56.25 76.37 89.94 58.20 77.34 | ddpm 85.94 46.88 71.09 85.64 48.63 72.27
        ddim 88.38 40.62 70.70 88.77 44.73 71.68""",
}
"""Rows of clean, Linf and L2, before and after ADDT."""

LAMBDA = {
    "vanilla-linf": (21.78, 36.72, 45.21, 46.78, 47.27),
    "l002-linf": (24.02, 40.92, 48.14, 48.83, 48.93),
    "l003-linf": (30.27, 43.07, 48.44, 50.20, 51.46),
    "l004-linf": (31.25, 44.92, 50.68, 51.07, 50.88),
    "vanilla-l2": (36.13, 55.47, 65.23, 68.85, 69.34),
    "l002-l2": (41.99, 61.72, 67.48, 69.82, 70.31),
    "l003-l2": (41.99, 62.97, 69.82, 69.04, 70.12),
    "l004-l2": (49.02, 64.45, 69.24, 69.53, 69.92),
}
GUIDANCE = {
    ("ddpm", "ft"): """47.27/21.88/33.11 71.58/34.77/52.64 81.93/42.29/63.77
        84.18/47.56/65.53 85.25/47.27/68.26""",
    ("ddpm", "mse"): """49.32/21.19/35.74 73.34/36.43/55.96 83.79/42.87/66.89
        85.16/47.27/67.87 86.91/46.97/70.80""",
    ("ddim", "ft"): """89.26/41.11/67.87 88.87/41.41/67.19 89.45/40.23/67.77
        88.77/42.09/67.38 88.18/40.62/68.26""",
    ("ddim", "mse"): """89.45/39.36/67.58 89.36/40.92/67.68 88.48/42.68/68.55
        88.18/41.02/68.16 89.26/40.33/68.36""",
}
SINGLE = {
    "liu-dw-box": {
        "ddpm/white": 47.27, "ddpm/fwd": 45.41, "ddpm/rev": 35.25, "ddpm/both": 16.80, "ddim/white": 42.19,
        "ddim/both": 4.98, "ddpm-addt/white": 51.46, "ddpm-addt/both": 39.16, "ddim-addt/white": 46.48,
        "ddim-addt/both": 17.09,
    },
    "liu-dw-nfe": {
        "nfe-5/vanilla": 5.5, "nfe-10/vanilla": 8.5, "nfe-20/vanilla": 13.5, "nfe-50/vanilla": 16,
        "nfe-100/vanilla": 16.8, "nfe-5/addt": 9.5, "nfe-10/addt": 22.5, "nfe-20/addt": 32.5,
        "nfe-50/addt": 39.5, "nfe-100/addt": 39.2,
    },
    "liu-eot": {
        "diffpure/eot-1": 69.04, "diffpure/eot-10": 55.96, "gdmp-mse/eot-1": 53.13, "gdmp-mse/eot-10": 40.97,
        "ddpm/eot-1": 60.25, "ddpm/eot-10": 47.27, "ddim/eot-1": 54.59, "ddim/eot-10": 42.19,
    },
    "liu-imagenet": {
        "at/clean": 69.52, "at/linf": 41.02, "ddpm/clean": 80.31, "ddpm/linf": 46.15,
        "ddpm-addt/clean": 80.20,
        "ddpm-addt/linf": 48.02,
    },
    "liu-tiny-imagenet": {"none/vanilla-clean": 71.37, "none/vanilla-linf": 0, "none/vanilla-l2": 0},
    "liu-nfe-ddim-cifar100": {"none/vanilla-clean": 76.66, "none/vanilla-linf": 0, "none/vanilla-l2": 2.44},
    "liu-nfe-ddpm-cifar100": {"none/vanilla-clean": 76.66, "none/vanilla-linf": 0, "none/vanilla-l2": 2.44},
    "liu-autoattack": {
        "diffpure/stock-linf": 62.11, "diffpure/fixed-linf": 56.25, "diffpure/stock-l2": 81.84,
        "diffpure/fixed-l2": 76.37, "ddpm/stock-linf": 57.81, "ddpm/fixed-linf": 46.88,
        "ddpm/stock-l2": 71.68,
        "ddpm/fixed-l2": 71.09, "ddim/stock-linf": 50.20, "ddim/fixed-linf": 40.62, "ddim/stock-l2": 77.15,
        "ddim/fixed-l2": 70.70, "diffpure/pgd-linf": 55.96, "diffpure/pgd-l2": 75.78, "ddpm/pgd-linf": 48.63,
        "ddpm/pgd-l2": 72.27, "ddim/pgd-linf": 44.73, "ddim/pgd-l2": 71.68,
    },
    "liu-pgd200": {
        "ddpm/vanilla-20": 47.27, "ddpm/vanilla-200": 41.02, "ddpm/addt-20": 51.46, "ddpm/addt-200": 46.19,
        "ddim/vanilla-20": 43.16, "ddim/vanilla-200": 36.23, "ddim/addt-20": 47.85, "ddim/addt-200": 41.11,
        "diffpure/vanilla-20": 55.96, "diffpure/vanilla-200": 48.93, "diffpure/addt-20": 62.11,
        "diffpure/addt-200": 55.76,
    },
    "liu-rbgm": {
        "ddpm-cifar10/rbgm-clean": 85.64, "ddpm-cifar10/rbgm-linf": 51.46, "ddpm-cifar10/rbgm-l2": 70.12,
        "ddpm-cifar10/plain-clean": 84.47, "ddpm-cifar10/plain-linf": 52.64, "ddpm-cifar10/plain-l2": 68.55,
        "ddpm-cifar100/rbgm-clean": 59.18, "ddpm-cifar100/rbgm-linf": 23.73, "ddpm-cifar100/rbgm-l2": 41.70,
        "ddim-cifar10/rbgm-clean": 88.77, "ddim-cifar10/rbgm-l2": 71.19, "ddim-cifar100/rbgm-clean": 66.02,
        "ddim-cifar100/rbgm-l2": 39.84, "ddpm-cifar100/plain-clean": 57.81, "ddpm-cifar100/plain-linf": 23.24,
        "ddpm-cifar100/plain-l2": 40.04, "ddim-cifar10/rbgm-linf": 46.48, "ddim-cifar10/plain-clean": 88.48,
        "ddim-cifar10/plain-linf": 50.49, "ddim-cifar10/plain-l2": 70.31, "ddim-cifar100/rbgm-linf": 18.85,
        "ddim-cifar100/plain-clean": 64.84, "ddim-cifar100/plain-linf": 20.31,
        "ddim-cifar100/plain-l2": 39.36,
    },
    "liu-fid": {"vanilla/fid": 3.196, "ft/fid": 3.500, "addt/fid": 5.190, "addt-linf/fid": 13.608},
    "liu-eot-sweep": {
        "n-1/accuracy": 60, "n-2/accuracy": 56, "n-3/accuracy": 51, "n-5/accuracy": 48.5,
        "n-10/accuracy": 44.5,
        "n-20/accuracy": 41.5, "n-30/accuracy": 40.5, "n-50/accuracy": 38.5, "n-70/accuracy": 42,
        "n-100/accuracy": 41.5, "n-200/accuracy": 40, "n-512/accuracy": 39, "n-1/cosine": 0.10,
        "n-2/cosine": 0.14, "n-3/cosine": 0.165, "n-5/cosine": 0.19, "n-10/cosine": 0.23, "n-20/cosine": 0.26,
        "n-30/cosine": 0.275, "n-50/cosine": 0.29, "n-70/cosine": 0.295, "n-100/cosine": 0.30,
        "n-200/cosine": 0.305, "n-512/cosine": 0.31,
    },
    "liu-wei-distances": {
        "attacked/l2": 1.188, "attacked/linf": 0.031, "attacked/ssim": 0.963, "random/linf": 0.031,
        "random/ssim": 0.966, "ddpm/ssim": 0.791, "reverse-only/l2": 3.084, "reverse-only/linf": 0.273,
        "reverse-only/ssim": 0.834, "reverse-only/clean": 81.92, "ddim/l2": 2.895, "ddim/linf": 0.249,
        "ddim/clean": 87.9, "one-step/l2": 2.692, "one-step/linf": 0.239, "one-step/clean": 85.2,
        "one-step/robust": 48.3,
    },
    "liu-wei-fixed-noise": {
        "cifar10-ddpm/clean": 79.61, "cifar10-ddpm/bpda": 68.00, "cifar10-ddpm/bpda-eot": 67.20,
        "cifar10-reverse/clean": 81.92, "cifar10-reverse/bpda": 74.20, "cifar10-reverse/bpda-eot": 74.90,
        "imagenet-ddpm/clean": 68.50, "imagenet-ddpm/bpda": 34.00, "imagenet-reverse/clean": 57.10,
        "imagenet-reverse/bpda": 31.00,
    },
    "liu-wei-randomness": {"noise-fixed/correlation": 0.9954, "input-fixed/correlation": 0.2368},
    "liu-wei-fixed-randomness": {"cifar10/fixed": 23.7, "imagenet/fixed": 29.5, "cifar10/stochastic": 70.64},
    "diffbreak-votes": {
        "diffpure-10/clean": 89.06, "diffpure-10/wor": 17.19, "diffpure-10/mv": 39.45,
        "diffpure-128/wor": 17.58,
        "diffpure-128/mv": 47.72, "gdmp/wor": 7.03, "gdmp/mv": 16.8, "imagenet-wrn-50-2/wor": 12.11,
        "imagenet-wrn-50-2/mv": 29.69, "imagenet-deit-s/wor": 21.09, "imagenet-deit-s/mv": 32.81,
        "mimic/claimed": 92.67, "mimic/wor": 2.73, "mimic/mv": 25.78,
    },
    "diffbreak-one-shot": {
        "adjoint/once": 70.64, "diffattack/once": 46.88, "surrogate/once": 48.28, "liu/once": 62.11,
        "diffgrad/once": 48.05,
    },
    "diffbreak-fixed-aa": {"diffpure/mean": 56.25, "diffpure/any": 30.86, "gdmp/mean": 40.97,
    "gdmp/any": 10.55},
    "diffbreak-low-frequency": {"diffpure/mv": 3.13},
    "diffhammer": {
        "clean/avg": 90.98, "clean/wor": 76.56, "bpda/avg": 70.74, "bpda/wor": 36.72, "da-aa/avg": 57.60,
        "da-aa/wor": 33.79, "pgd/avg": 52.73, "pgd/wor": 31.05, "diffhammer/avg": 42.54,
        "diffhammer/wor": 22.66,
        "gdmp-pgd/wor": 36.91, "gdmp-diffhammer/avg": 41.64, "gdmp-diffhammer/wor": 27.54,
        "lm-diffhammer/avg": 16.15, "lm-diffhammer/wor": 8.01,
    },
    "diffhammer-fuzzy": {"mixed/share": 46.3, "once/share": 59.6, "all/share": 41.7},
    "lee-kim": {"diffpure/robust": 46.0, "gdmp/robust": 24.53},
    "mefa": {"ebm/claimed": 54.9, "ebm/mean": 6.08},
}  # fmt: skip
UNCERTAIN = [
    "liu-dw-box ddpm/rev", "liu-dw-nfe nfe-5/vanilla", "liu-dw-nfe nfe-100/addt",
    "liu-eot-sweep n-10/accuracy",
    "liu-autoattack ddpm/pgd-linf", "liu-autoattack ddpm/pgd-l2", "liu-autoattack ddim/pgd-linf",
    "liu-autoattack ddim/pgd-l2", "liu-wei-distances ddpm/l2", "liu-wei-fixed-noise cifar10-ddpm/bpda-eot",
    "liu-wei-randomness noise-fixed/correlation", "liu-wei-randomness input-fixed/correlation",
    "diffbreak-fixed-aa gdmp/mean", "diffhammer pgd/wor", "diffhammer gdmp-pgd/wor",
    "lee-kim diffpure/robust",
    "lee-kim gradual/robust", "mefa ebm/mean",
]  # fmt: skip
"""What was read off a plot, contradicts another table, or is of a setting that is not known."""

OTHERS = {"pyautoattack", "art", "foolbox"}
"""Attacks that need a library which a plain installation does not have."""

BUDGET = 50 * 60
GRADIENT, FORWARD, CLASSIFIER = 0.0135, 0.0062, 0.007
"""Seconds of one thread an image: a differentiated network call, a plain one,
and the classifier; measured."""


@cache
def placed(name: str, scale: str) -> list[Placed]:
    return resolve(load_table(name), scale)


def mini_jobs() -> dict[str, Job]:
    """Every run of the mini scale once, for as many images as any table asks for."""
    found: dict[str, Job] = {}
    for one in (p for name in table_names() for p in placed(name, "mini")):
        if one.job and (one.job.key not in found or one.job.images > found[one.job.key].images):
            found[one.job.key] = one.job
    return found


def in_rows(text: str, columns: tuple[str, ...]) -> dict[str, float]:
    """``name 1 2 3 | name 4 5 6`` as cells; lines part rows too."""
    cells = {}
    for line in (part.split() for part in text.replace("\n", "|").split("|") if part.strip()):
        cells |= {f"{line[0]}/{c}": float(v) for c, v in zip(columns, line[1:], strict=True)}
    return cells


def typed() -> list[tuple[str, str, float]]:
    """All published values as (table, cell, value)."""
    found = [(n, c, v) for n, text in TRIPLES.items() for c, v in in_rows(text, THREE).items()]
    found += [(n, c, v) for n, text in SEXTETS.items() for c, v in in_rows(text, SIX).items()]
    found += [("liu-lambda", f"{n}/{c}", v) for c, vs in LAMBDA.items() for n, v in zip(NFE, vs, strict=True)]
    for (sampler, model), text in GUIDANCE.items():
        for n, triple in zip(NFE, text.split(), strict=True):
            values = map(float, triple.split("/"))
            found += [
                (f"liu-guidance-{sampler}", f"{n}/{model}-{c}", v) for c, v in zip(THREE, values, strict=True)
            ]
    return found + [(n, c, float(v)) for n, cells in SINGLE.items() for c, v in cells.items()]


def value_of(table: str, cell: str) -> float | None:
    row, column = cell.split("/")
    return load_cached(table).row(row).cells[column].value


@cache
def load_cached(name: str):
    return load_table(name)


def test_published_values_are_those_of_the_papers() -> None:
    assert len(typed()) > 400
    wrong = [(t, c, v, value_of(t, c)) for t, c, v in typed() if value_of(t, c) != v]
    assert not wrong


def test_every_published_value_of_a_table_was_typed_again() -> None:
    known = {(t, c) for t, c, _ in typed()}
    repeated = {"liu-guidance-ddpm", "liu-guidance-ddim"}  # whose columns of ADDT repeat another table's
    untyped = [
        (name, f"{row.name}/{column.name}")
        for name in table_names()
        for row, column, cell in load_cached(name).places()
        if cell.value is not None and (name, f"{row.name}/{column.name}") not in known
        if not (name in repeated and column.name.startswith("addt"))
    ]
    assert untyped == []


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_columns_that_repeat_another_table_have_its_values(sampler: str) -> None:
    for n in NFE:
        for what in THREE:
            cell = f"{n}/addt-{what}"
            assert value_of(f"liu-guidance-{sampler}", cell) == value_of(f"liu-nfe-{sampler}", cell)


@pytest.mark.parametrize("where", UNCERTAIN)
def test_what_is_not_certain_says_why(where: str) -> None:
    table, cell = where.split()
    row, column = cell.split("/")
    assert load_cached(table).row(row).cells[column].unconfirmed


def test_the_names_and_titles_of_tables_are_unique() -> None:
    titles = [load_cached(name).title for name in table_names()]
    assert len(titles) == len(set(titles)) >= 37


@pytest.mark.parametrize("name", table_names())
def test_a_claim_can_be_tested_at_mini_scale_or_says_why_not(name: str) -> None:
    table = load_cached(name)
    assert table.claims
    cells = {p.name: p for p in placed(name, "mini")}
    for claim in table.claims:
        if claim.not_mini:
            continue
        measured = [cells[c] for c in claim.cells]
        if any(p.job is None for p in measured):  # the reason is the cell's
            assert all(p.skipped for p in measured if p.job is None)
            continue
        what = [(p.job.key, p.reads.row, p.reads.protocol, p.reads.number) for p in measured]
        assert len(set(what)) == len(what), claim.words


@pytest.mark.parametrize("name", table_names())
def test_every_row_is_measured_at_mini_scale_or_says_why_not(name: str) -> None:
    for one in placed(name, "mini"):
        assert one.job is not None or one.skipped
        if one.job is None:
            continue
        assert {a.name for a in one.job.spec.attacks}.isdisjoint(OTHERS)
        assert one.job.spec.denoiser is None or one.job.spec.denoiser.name == "embedded"
        assert one.job.spec.examples.count >= 16


def test_paper_scale_is_as_published() -> None:
    for name in table_names():
        for one in placed(name, "paper"):
            if name.startswith("liu-") and not name.startswith("liu-wei") and one.job:
                spec = one.job.spec
                assert spec.examples.model_dump() == {
                    "count": 128 if "semi" in name or "sweep" in name else 1024, "first": 0, "order": "file",
                }  # fmt: skip
                assert (spec.purifier.t_star, spec.seed) == (0.1, 0)
    steps = {p.row.name: p.job.spec.purifier.steps for p in placed("liu-nfe-ddpm", "paper")}
    assert [steps[n] for n in NFE] == [50, 100, 200, 500, 1000]
    l2 = next(p.job.spec for p in placed("liu-sota", "paper") if p.name == "ddpm/l2")
    assert (l2.threat.norm, l2.threat.budget) == ("l2", 0.5)
    assert l2.attacks[0].options == {"iterations": 20, "eot": 10, "step_size": 0.1}
    churn = {p.row.name: p.job.spec.purifier.options["churn"] for p in placed("liu-edm", "paper")}
    assert churn == {"sde": 6.0, "ode": 0.0}


def records_of(analysis: str, options: dict) -> list[dict]:
    """Records as an analysis would write them, of eight images."""
    line = [float(k) for k in range(-16, 17, options.get("stride", 2))]
    counts = [str(k) for k in options.get("counts", [])]
    way = {metric: [0.1, 0.2] for metric in ("l1", "l2", "linf", "ssim")}
    varied = ("input", "randomness", "both", "forward", "reverse", "budget")
    matrices = {name: [[1.0, 0.5], [0.5, 1.0]] for name in varied[:2]}
    found = []
    for i in range(8):
        made = {
            "eot": {
                "cosine": dict.fromkeys(counts, 0.1 + i / 90),
                "accuracy": dict.fromkeys(counts, 0.5),
                "steps": line,
                **{name: [i + k for k in line] for name in ("DW", "DW_semi", "random")},
            },
            "distances": {
                "published": "ddpm",
                "turn": 1,
                "tapes": [dict.fromkeys(("clean", "random", "attacked"), way)],
            },
            "randomness": {
                "correlation": {"input": 0.9, "randomness": 0.1 + i / 20},
                "variance": dict.fromkeys(varied, 1.0 + i),
                "matrices": matrices,
            },
            "fuzziness": {"wrong": i % 5, "draws": options.get("draws", 100)},
        }
        found.append({"id": i, **made[analysis]})
    return found


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_analyses_have_the_numbers_that_cells_read(scale: str) -> None:
    read = [p for name in table_names() for p in placed(name, scale) if p.job and p.reads.analysis]
    assert {p.reads.analysis for p in read} == {"eot", "distances", "randomness", "fuzziness"}
    names: dict[str, set[str]] = {}
    for one in read:
        if one.job.key not in names:
            made = analyses.get(one.reads.analysis)(**one.job.options)
            records = records_of(one.reads.analysis, dict(one.job.options))
            numbers = made.conclude({Unit(range(8)): records}).numbers
            names[one.job.key] = {number.name for number in numbers}
        assert one.reads.number in names[one.job.key], one.name


def seconds_of(job: Job) -> float:
    """About what a run takes of one thread, by its attacks' gradients and its judging draws."""
    spec, options = job.spec, job.options
    chain = {key: getattr(spec.purifier, key) for key in ("t_star", "steps", "options", "grid")}
    calls = make_sampler(spec.purifier.sampler, **chain).calls
    more = {"gdmp": 1.8, "likelihood": 3.0}.get(spec.purifier.sampler, 1.0)  # a derivative inside
    grad, judge = GRADIENT * calls * more + CLASSIFIER, FORWARD * calls * more + CLASSIFIER / 2
    draws = spec.draws.report
    if job.analysis == "eot":
        passes = sum(options["counts"]) * options["iterations"] + max(options["counts"]) + options["semi"]
        lines = 3 * options["tapes"] * (32 // options["stride"] + 1)
        each = passes * grad + (options["draws"] * len(options["counts"]) + lines) * judge
    elif job.analysis == "distances":
        each = options["attack_iterations"] * grad + 4 * judge
    elif job.analysis == "randomness":
        each = 5 * options["draws"] * judge
    elif job.analysis == "fuzziness":
        each = options["iterations"] * options["eot"] * grad + options["draws"] * judge
    else:
        each = 3 * draws * judge  # clean images, images with noise, and those of the classifier alone
        for knowledge in spec.knowledge:
            attack = spec.attacks[0]
            eot = 1 if knowledge.shared_sites else attack.options.get("eot", 10)
            count = attack.options["iterations"] * eot * (2 if attack.name == "autoattack" else 1)
            choosing = attack.options["iterations"] * attack.options.get("judge_draws", 0)
            watching = attack.options["iterations"] * 2 * draws if spec.protocol == "while_optimising" else 0
            backward = judge + CLASSIFIER if knowledge.gradient == "bpda" else grad
            each += count * backward + (choosing + watching + draws * knowledge.tapes) * judge
    return each * (job.images or 0)


def test_all_tables_are_affordable_at_mini_scale() -> None:
    assert sum(map(seconds_of, mini_jobs().values())) < BUDGET
    assert max(map(seconds_of, mini_jobs().values())) < 5 * 60


def test_tables_share_runs() -> None:
    cells = [p for name in table_names() for p in placed(name, "mini") if p.job]
    assert len(cells) > 4 * len(mini_jobs())
