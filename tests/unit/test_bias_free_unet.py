"""A denoiser without additive constants: what it keeps to, and what it is compared with."""

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import seeded_generator
from dbpkit.models.networks import UNet
from dbpkit.models.networks.bias_free_unet import BiasFreeUNet
from tests.derivatives import assert_derivatives
from tests.oracles import uniform


def small() -> BiasFreeUNet:
    """A network whose layers that start at 0 have weights."""
    with seeded_generator(0):
        network = BiasFreeUNet(3, (16, 16), (1, 1), 1, 16)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.double().eval()


def images() -> Tensor:
    return uniform(2, 3, 8, 8, seed=1, low=-1.0, high=1.0).double()


@pytest.mark.parametrize("scale", [1e-3, 0.3, 7.0, 1e4])
def test_answer_scales_with_the_image(scale: float) -> None:
    network, x = small(), images()
    assert torch.allclose(network(scale * x), scale * network(x), rtol=1e-10, atol=1e-12 * scale)


def test_answer_is_the_jacobian_times_the_image() -> None:
    """Euler's theorem: a filter that adapts to the image and adds nothing."""
    network, x = small(), images()
    out, along = torch.autograd.functional.jvp(network, x, x)
    assert torch.allclose(out, along, atol=1e-12)
    assert float(out.abs().mean()) > 1e-3


def test_gradients_are_those_of_central_differences() -> None:
    assert_derivatives(small(), images(), step=1e-6)


def test_image_of_zeros_gives_zeros_and_has_a_gradient() -> None:
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    out = small()(x)
    assert float(out.detach().abs().max()) < 1e-8
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert bool(torch.isfinite(grad).all())


def test_it_has_no_bias_and_as_many_weights_as_the_network_that_is_told() -> None:
    blind, told = BiasFreeUNet(), UNet()
    assert not [name for name, _ in blind.named_parameters() if "bias" in name]
    count, other = (sum(p.numel() for p in net.parameters()) for net in (blind, told))
    assert count == pytest.approx(other, rel=0.01)
    assert other == 1_867_340


def test_told_a_level_or_a_class_it_says_which_adapter_does_not() -> None:
    with pytest.raises(UserError, match=r"told neither noise level nor class\. Use the adapter 'blind'"):
        small()(images(), torch.tensor([0.1, 0.1]))
