"""What the checks before a run look at, in words, by the flag that each raises; see `docs/flags.md`."""

from collections.abc import Sequence

from dbpkit.experiment.build import Parts
from dbpkit.results.flags import Flag

OF_ANY_MODEL = {
    "probabilities": "the classifier returns logits, not probabilities",
    "untracked_randomness": "the same image and noise give the same output twice",
    "batch_dependence": "an image's logits do not depend on the rest of the batch",
    "piecewise_constant": "the logits move when the pixels do",
    "saturated_loss": "the loss's gradient is not lost in rounding",
    "squashed_outputs": "the outputs are not squashed into a range in which attacks stall",
    "gradient_mismatch": "the exact gradient agrees with a numeric derivative",
}
"""Checks of every model."""

OF_A_PURIFIER = {
    "denoiser_worse_than_nothing": "the denoiser's estimate is nearer to the clean image than a plain shrink",
    "denoiser_mismatch": "no other noise level or prediction type suits the denoiser better",
    "purifier_destroys": "purification loses no more of a clean image than its noise hid",
    "replay_differs": "a replayed step computes what it computed before",
    "suspicious_level": "purification starts well above what the attack can do, and below pure noise",
    "suspicious_grid": "the sampler takes enough steps",
}
"""Checks of a purified classifier alone."""

GRADIENT_NOISE = {"gradient_noise": "enough draws are averaged for each gradient"}
"""Runs where an attacker meets noise, and no check before it found an error."""


def looked_at(parts: Parts, averaged: int, found: Sequence[Flag]) -> dict[str, str]:
    """Returns the checks that ran before a run, with what they look at.

    Args:
        parts: what they looked at.
        averaged: most draws per gradient of an attacker who meets noise; 0 where none does.
        found: the flags that they raised.
    """
    has_errors = any(flag.severity == "error" for flag in found)
    return {
        **OF_ANY_MODEL,
        **(OF_A_PURIFIER if parts.denoiser is not None else {}),
        **(GRADIENT_NOISE if averaged and not has_errors else {}),
    }
