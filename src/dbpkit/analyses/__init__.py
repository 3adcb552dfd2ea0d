"""The findings of both papers, each as one analysis of the user's own models."""

from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)
