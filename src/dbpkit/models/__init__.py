"""Networks, the denoisers and classifiers made of them, and the files their weights lie in."""

import dbpkit.models.libraries  # noqa: F401 - registers the classifiers of other libraries
from dbpkit.models.sources import (
    classifier_from_weights,
    classifier_sources,
    denoiser_from_diffusers,
    denoiser_from_weights,
    denoiser_sources,
    embedded_classifier,
    embedded_denoiser,
    load_classifier,
    load_denoiser,
    load_embedded,
    source,
    state_sha256,
)

__all__ = [
    "classifier_from_weights",
    "classifier_sources",
    "denoiser_from_diffusers",
    "denoiser_from_weights",
    "denoiser_sources",
    "embedded_classifier",
    "embedded_denoiser",
    "load_classifier",
    "load_denoiser",
    "load_embedded",
    "source",
    "state_sha256",
]
