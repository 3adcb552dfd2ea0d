"""Robustness draw by draw of the noise."""

from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)
