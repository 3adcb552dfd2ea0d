"""Purifiers without a network: filters of images, and noise alone, one file each.

They are the lower rungs of the question what a diffusion model adds (`dbpkit.analyses.ladder`). Each may add
the noise of a diffusion time first, the same draw as a sampler's, so that it is compared at equal noise.
"""

from dbpkit.foundation.registry import import_siblings
from dbpkit.purification.filters.filter import BPDA_LIKE, Filter, Noising

import_siblings(__name__, __path__)

__all__ = ["BPDA_LIKE", "Filter", "Noising"]
"""The base class of filters, and what one with another gradient than its own says."""
