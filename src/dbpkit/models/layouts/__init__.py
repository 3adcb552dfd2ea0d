"""Published ways of storing networks, one file each: what marks them, and how they are read."""

from dbpkit.foundation.registry import import_siblings
from dbpkit.models.layouts.contents import Weights, weights_in
from dbpkit.models.layouts.layout import Asked, Layout, Reading, layouts

import_siblings(__name__, __path__)

__all__ = ["Asked", "Layout", "Reading", "Weights", "layouts", "weights_in"]
