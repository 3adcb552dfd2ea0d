"""What a pass of the model costs in network calls, found by counting.

The thing people get wrong: a formula. A second-order sampler makes two calls a step and one in the last, a
corrector one more, and a sampler of the user's own whatever it likes.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import OutputError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.diffusion import Purifier


class _Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x, sigma)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


@torch.no_grad()
def network_calls(model: Any, x: Tensor, noise: NoisePlan) -> int:
    """Forward calls of the denoiser in one pass of a model, counted while it classifies an image.

    Args:
        model: a randomised classifier, or an attacker's view of it.
        x: any image (1, C, H, W).
        noise: plan of one example.

    Returns:
        The calls; 1 for a model without a dbpkit `Purifier`, which is itself the network.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    purifiers = [(m, m.sampler) for m in modules if isinstance(m, Purifier)]
    counted: list[_Counted] = []

    def counting(sample: Any) -> Any:
        def sample_and_count(denoiser: Any, *arguments: Any, **options: Any) -> Tensor:
            counted.append(_Counted(denoiser))
            return sample(counted[-1], *arguments, **options)

        return sample_and_count

    if not purifiers:
        return 1
    try:
        for purifier, sampler in purifiers:
            purifier.sampler = sampler._replace(sample=counting(sampler.sample))
        with contextlib.suppress(OutputError):  # whoever asks for its logits is told
            model(x, noise=noise)
    finally:
        for purifier, sampler in purifiers:
            purifier.sampler = sampler
    return sum(denoiser.calls for denoiser in counted)
