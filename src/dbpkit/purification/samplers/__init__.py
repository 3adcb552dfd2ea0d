"""Samplers: one short file each, a class whose ``step`` reads like the paper's algorithm.

A sampler gets the *image* in [-1, 1] units, noises it to its first level and denoises to 0. The thing people
get wrong: a step that draws its noise outside ``step``, or keeps a tensor in itself. The noise of a step is
drawn inside it and what it needs of an earlier step is in its state, so that a step that runs again in a
backward pass repeats itself without anything having been stored.
"""

from dbpkit.foundation.registry import import_siblings
from dbpkit.purification.samplers.binding import check_levels, make_sampler, sampler_options
from dbpkit.purification.samplers.chain import (
    FORWARD_SITES,
    REVERSE_SITES,
    Chain,
    clipped,
    diffuse,
    level,
    samplers,
)
from dbpkit.purification.samplers.functions import Method, unscaled

import_siblings(__name__, __path__)

__all__ = [
    "FORWARD_SITES",
    "REVERSE_SITES",
    "Chain",
    "Method",
    "check_levels",
    "clipped",
    "diffuse",
    "level",
    "make_sampler",
    "sampler_options",
    "samplers",
    "unscaled",
]
