"""Training of classifiers and denoisers: objectives, the loop, and the finished model's card."""

from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)
