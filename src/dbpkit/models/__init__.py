"""Networks, the denoisers and classifiers made of them, and the files their weights lie in."""

from dbpkit.models.sources import (
    classifier_sources,
    denoiser_sources,
    load_classifier,
    load_denoiser,
    load_embedded,
    source,
)

__all__ = [
    "classifier_sources",
    "denoiser_sources",
    "load_classifier",
    "load_denoiser",
    "load_embedded",
    "source",
]
