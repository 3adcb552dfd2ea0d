"""Purifiers, the samplers they run, and what an attacker differentiates of them."""

from dbpkit.purification.classifier import BoundClassifier, PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.ensemble import Ensemble
from dbpkit.purification.purifier import make_purifier, purifiers
from dbpkit.purification.views import gradients

__all__ = [
    "BoundClassifier",
    "Ensemble",
    "PurifiedClassifier",
    "Purifier",
    "Undefended",
    "gradients",
    "make_purifier",
    "purifiers",
]
