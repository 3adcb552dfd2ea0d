"""Trajectories: the embedding against scikit-learn's PCA, losses and angles of a linear model."""

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.trajectories import Trajectories, embed
from dbpkit.foundation.errors import UserError
from tests.oracles import uniform
from tests.unit.analyses import stubs

STEPS = 4
ANALYSIS = Trajectories(images=12, repeats=2, iterations=STEPS, eot=1)
RUNS = ["DW", "EoT 1", "EoT 2", "single draw 1", "single draw 2"]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return stubs.measure_all(ANALYSIS, stubs.subject(stubs.Linear()))


def walk(example: int, run: int) -> np.ndarray:
    """Perturbations (steps + 1, ...) of a run on the linear model, every one with a draw a step."""
    at = [(0, "report", 0)] * STEPS if run == 0 else [(s, "attack", 1 + run) for s in range(STEPS)]
    signs = [np.sign(stubs.gradient(example, *where)) for where in at]
    return stubs.EPS / 4 * np.cumsum([0 * signs[0], *signs], axis=0)


@pytest.fixture(scope="module")
def paths() -> np.ndarray:
    """All perturbations (images, runs, steps + 1, 192)."""
    return np.array([[walk(100 + i, r).reshape(STEPS + 1, -1) for r in range(5)] for i in range(12)])


def test_trajectories_losses_and_end_angles_are_the_linear_models(
    measured: dict[str, Any], paths: np.ndarray
) -> None:
    losses = np.concatenate([u["losses"] for u in measured.values()])
    g = np.array([stubs.gradient(100 + i, 0).ravel() for i in range(12)])
    assert losses == pytest.approx(stubs.softplus(np.einsum("nd,nrsd->nrs", g, paths)), rel=1e-3, abs=1e-6)
    found = stubs.numbers(ANALYSIS.conclude(measured))
    ends = paths[:, :, -1] / np.linalg.norm(paths[:, :, -1], axis=2, keepdims=True)
    to_dw = np.einsum("nd,nrd->nr", ends[:, 0], ends[:, 1:3]).mean()
    assert found["cosine of EoT perturbations to the DW perturbation"].value == pytest.approx(to_dw, abs=1e-4)
    between = np.einsum("nd,nd->n", ends[:, 1], ends[:, 2]).mean()
    assert found["cosine of EoT perturbations to each other"].value == pytest.approx(between, abs=1e-4)
    last = found["loss under the known noise at the end, single draw"]
    assert last.value == pytest.approx(losses[:, 3:, -1].mean())


def up_to_sign(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a * np.sign((a * b).sum(axis=0))


def test_trajectories_embedding_is_scikit_learns_pca_of_all_perturbations(
    measured: dict[str, Any], paths: np.ndarray
) -> None:
    """One point per run and step: the perturbations of all 12 images side by side; the start counts once."""
    points = np.moveaxis(paths[:, :, 1:], 0, 2).reshape(5 * STEPS, -1)
    points = np.concatenate([0 * points[:1], points])
    pca = PCA(2, svd_solver="full").fit(points)
    expected = pca.transform(points) - pca.transform(points[:1])
    result = ANALYSIS.conclude(measured)
    lines = {s.name: np.stack([s.x, s.y], axis=1) for s in result.charts[0].series}
    assert list(lines) == RUNS
    found = np.concatenate([lines[name][1:] for name in RUNS])
    assert up_to_sign(found, expected[1:]) == pytest.approx(expected[1:], abs=1e-4)
    assert all((line[0] == 0).all() for line in lines.values())
    kept = stubs.numbers(result)["variance of the paths within the plane of PCA"].value
    assert kept == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-5)


def test_embed_keeps_all_distances() -> None:
    points = uniform(6, 9, low=-1).numpy()
    found, _ = embed(points @ points.T)
    points = np.concatenate([np.zeros((1, 9)), points])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.linalg.norm(found[:, None] - found[None], axis=2) == pytest.approx(apart)
    assert (found[0] == 0).all()


def test_embed_points_that_do_not_move_stay() -> None:
    found, kept = embed(np.zeros((3, 3)))
    assert (found == 0).all()
    assert kept == 1


def test_trajectories_tsne_has_every_point_and_no_chance(measured: dict[str, Any]) -> None:
    analysis = Trajectories(images=12, repeats=2, iterations=STEPS, eot=1, embedding="tsne", perplexity=5)
    first, again = (analysis.conclude(measured).charts[0] for _ in range(2))
    assert first == again
    assert [(s.name, len(s.x)) for s in first.series] == [(name, STEPS + 1) for name in RUNS]
    assert np.isfinite([[*s.x, *s.y] for s in first.series]).all()
    assert "t-SNE" in first.title


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "umap"}, "embedding must be 'pca' or 'tsne', not 'umap'"),
        ({"embedding": "tsne", "perplexity": 71}, "perplexity 71 must be .* below the 71 points"),
        ({"embedding": "tsne", "perplexity": "five"}, "perplexity must be a number above 0, not 'five'"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1"),
    ],
)
def test_trajectories_bad_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("trajectories", options)
