"""Samplers: one short file each, flat functions that read like the papers' algorithms.

A sampler gets the *image* in [-1, 1] units, noises it to ``levels[0]`` itself and denoises to 0. State is
``x0 + sigma * z`` throughout. The thing people get wrong: the noise of a step is drawn inside the function
given to ``step``, so that replaying the step in a backward pass draws the same values without storing them.
"""

from dbpkit.foundation.registry import import_siblings
from dbpkit.purification.samplers.method import Method, diffuse, make_sampler, samplers

import_siblings(__name__, __path__)

__all__ = ["Method", "diffuse", "make_sampler", "samplers"]
