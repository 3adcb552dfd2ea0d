"""How good a denoiser is as a generative model: distances of feature distributions."""

from dbpkit.fidelity.chain import Chain, generate
from dbpkit.fidelity.distance import Statistics, feature_statistics, frechet_distance
from dbpkit.fidelity.features import (
    Features,
    classifier_features,
    feature_sources,
    from_classifier,
    inception,
    make_features,
)
from dbpkit.fidelity.measurement import Quality, quality

__all__ = [
    "Chain",
    "Features",
    "Quality",
    "Statistics",
    "classifier_features",
    "feature_sources",
    "feature_statistics",
    "frechet_distance",
    "from_classifier",
    "generate",
    "inception",
    "make_features",
    "quality",
]
