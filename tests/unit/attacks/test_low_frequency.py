"""The low-frequency attack against scipy's DCT, torch's optimisers and closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft
from torch import Tensor, nn

from dbpkit.attacks import Target
from dbpkit.attacks.low_frequency import low_frequency, waves
from dbpkit.data import load_dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.sources import embedded_classifier
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, make_threat
from tests.oracles import NoisyClassifier, TinyClassifier, cross_entropy, uniform

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one."""
FAR = L2(100)
"""A budget that never binds."""


def spectrum(delta: Tensor) -> Tensor:
    """Orthonormal DCT coefficients of images by scipy, (B, C, H, W)."""
    return torch.from_numpy(fft.dctn(delta.numpy(), axes=(2, 3), norm="ortho"))


def grey(count: int, *shape: int) -> Tensor:
    """Images between 0.45 and 0.55, so that no clip binds."""
    return uniform(count, *shape, low=0.45, high=0.55)


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_waves_are_scipys_orthonormal_dct(side: int) -> None:
    matrix = waves(side, torch.zeros(1, dtype=torch.float64))
    expected = fft.dct(np.eye(side), axis=0, norm="ortho")
    torch.testing.assert_close(matrix, torch.from_numpy(expected), rtol=0, atol=1e-13)
    identity = torch.eye(side, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-13)


@pytest.mark.parametrize("step", ["sign", "adam"])
def test_low_frequency_perturbation_has_no_high_frequency(step: str) -> None:
    x, y = grey(3, 1, 6, 8), torch.tensor([0, 1, 2])
    found = low_frequency(
        NoisyClassifier(TinyClassifier()),
        x,
        y,
        threat=L2(0.3),
        noise=NoisePlan.of(0, range(3)),
        iterations=8,
        eot=2,
        frequencies=3,
        step=step,
    )
    coefficients = spectrum(found.x_adv - x)
    assert float(coefficients[:, :, 3:, :].abs().max()) < ROUND_OFF
    assert float(coefficients[:, :, :, 3:].abs().max()) < ROUND_OFF
    assert float(coefficients[:, :, :3, :3].abs().max()) > 0.05
    torch.testing.assert_close(L2(0.3).distance(x, found.x_adv), torch.full((3,), 0.3).double())


def test_low_frequency_linear_classifier_ends_on_the_diagonal_of_its_coefficients() -> None:
    """A constant gradient and equal steps: all coefficients are equal in size, with the gradient's signs."""
    weight = uniform(2, 48, seed=3, low=-1, high=1)
    layer = nn.Linear(48, 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    x, y = grey(2, 3, 4, 4), torch.tensor([0, 1])
    found = low_frequency(
        Undefended(nn.Sequential(nn.Flatten(), layer)),
        x,
        y,
        threat=L2(0.2),
        noise=NoisePlan.of(0, range(2)),
        iterations=10,
        eot=1,
        frequencies=2,
    )
    signs = spectrum((weight[1] - weight[0]).reshape(1, 3, 4, 4))[:, :, :2, :2].sign()
    expected = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    expected[0, :, :2, :2] = 0.2 / math.sqrt(12) * signs
    expected[1, :, :2, :2] = -0.2 / math.sqrt(12) * signs
    torch.testing.assert_close(spectrum(found.x_adv - x), expected, rtol=0, atol=1e-8)  # L2's 1e-10


@pytest.mark.parametrize(("threat", "unit"), [(L2(0.5), 1.0), (Linf(0.5), math.sqrt(16))])
def test_low_frequency_first_step_is_as_long_as_the_threat_models_own(threat: Any, unit: float) -> None:
    x, y = grey(2, 1, 4, 4), torch.tensor([0, 1])
    found = low_frequency(
        Undefended(TinyClassifier()),
        x,
        y,
        threat=threat,
        noise=NoisePlan.of(0, range(2)),
        iterations=1,
        eot=1,
        step_size=0.01,
        frequencies=3,
    )
    length = (found.x_adv - x).flatten(1).norm(dim=1)
    assert length.tolist() == pytest.approx([0.01 * unit] * 2, abs=1e-8)


@pytest.mark.parametrize("step", ["sign", "adam"])
def test_low_frequency_without_a_binding_budget_is_torchs_optimiser_on_the_coefficients(step: str) -> None:
    """Torch's Adam, or sign ascent, on coefficients behind scipy's inverse transform, with autograd."""
    classifier, x, y = TinyClassifier(), grey(1, 1, 4, 6), torch.tensor([1])
    basis = torch.zeros(9, 1, 4, 6, dtype=torch.float64)
    for i in range(9):
        wave = np.zeros((4, 6))
        wave[i // 3, i % 3] = 1
        basis[i, 0] = torch.from_numpy(fft.idctn(wave, norm="ortho"))
    c = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    rate = 0.01 / math.sqrt(9)  # an L2 step of 0.01 over nine coefficients
    optimiser = torch.optim.Adam([c], lr=rate, eps=1e-12, maximize=True)
    norms = []
    for _ in range(5):
        optimiser.zero_grad()
        cross_entropy(classifier(x + torch.einsum("k,kchw->chw", c, basis)), y).sum().backward()
        norms.append(float(c.grad.norm()))
        if step == "adam":
            optimiser.step()
        else:
            c.data += rate * c.grad.sign()
    found = low_frequency(
        Undefended(classifier),
        x,
        y,
        threat=FAR,
        noise=NoisePlan.of(0, [1]),
        iterations=5,
        eot=1,
        step_size=0.01,
        frequencies=3,
        step=step,
        loss="ce",
    )
    expected = x + torch.einsum("k,kchw->chw", c.detach(), basis)
    torch.testing.assert_close(found.x_adv, expected, rtol=0, atol=1e-9)  # Adam's and L2's tiny terms
    assert found.grad_norm[0].tolist() == pytest.approx(norms, abs=1e-9)


def test_low_frequency_more_frequencies_than_pixels_takes_them_all() -> None:
    x, y = grey(2, 1, 4, 4), torch.tensor([0, 1])
    settings: dict[str, Any] = {
        "threat": L2(0.3),
        "noise": NoisePlan.of(0, range(2)),
        "iterations": 3,
        "eot": 1,
    }
    model = Undefended(TinyClassifier())
    whole = low_frequency(model, x, y, frequencies=4, **settings).x_adv
    assert torch.equal(low_frequency(model, x, y, frequencies=99, **settings).x_adv, whole)


def test_low_frequency_visits_every_iterate_on_draws_of_its_own() -> None:
    target, seen = Target(NoisyClassifier(TinyClassifier())), []
    target.visit = lambda x_adv, noise: seen.append((x_adv, noise.example_ids.tolist()))
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    found = low_frequency(target, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [1, 2]), iterations=3, eot=4)
    assert [ids for _, ids in seen] == [[1, 2]] * 3
    assert torch.equal(seen[-1][0], found.x_adv)
    assert target.gradient_rows == target.forward_rows == 2 * 3 * 4


@pytest.mark.parametrize("step", ["sign", "adam"])
def test_low_frequency_perceptual_budget_fools_the_embedded_classifier(step: str) -> None:
    """Within a feature distance of 0.2, where random low-frequency perturbations fool it on few images."""
    threat, data = make_threat("perceptual", 0.2), load_dataset("embedded").select(slice(0, 8))
    x, y = data.x(), data.labels
    classifier = embedded_classifier(mirror=False)
    noise = NoisePlan.of(0, data.ids, "attack")
    found = low_frequency(
        Undefended(classifier), x, y, threat=threat, noise=noise, iterations=8, eot=1, step=step
    )
    assert float(threat.distance(x, found.x_adv).max()) <= 0.2
    z = noise.on("control").normal("probe", 0, x[:, :, :8, :8])
    rows = waves(32, x)[:8]
    random = threat.project(x, x + rows.T @ z @ rows)
    assert float(threat.distance(x, random).min()) > 0.199
    attacked, control = (classifier(image).argmax(dim=1) == y for image in (found.x_adv, random))
    assert int(attacked.sum()) <= 1
    assert int(control.sum()) >= 6


@pytest.mark.parametrize("options", [{"iterations": 0}, {"eot": 0}, {"frequencies": 0}, {"step": "newton"}])
def test_low_frequency_option_out_of_range_raises(options: dict[str, Any]) -> None:
    message = "step must be 'adam' or 'sign', not 'newton'" if "step" in options else "of at least 1, not"
    with pytest.raises(UserError, match=message):
        low_frequency(
            Undefended(TinyClassifier()),
            uniform(1, 1, 4, 4),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [0]),
            **options,
        )
