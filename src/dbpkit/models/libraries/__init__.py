"""Classifiers of other libraries by name: one file per library, imported when it is asked for.

All take pixels in [0, 1] of any size and return logits: mean, deviation and input size of the library's own
configuration are stages of the model, which an attacker differentiates. Nothing is fetched from a network
unless ``download`` is true.
"""

from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)
