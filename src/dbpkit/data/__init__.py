"""Labelled images from files, with example ids that stay the same for ever.

The thing people get wrong: an example's id is its place in the original file (or a hash of its path),
not its place in a batch or a subset, so that its noise follows it everywhere.
"""

from dbpkit.data.dataset import Dataset, data_root, datasets, load_dataset
from dbpkit.data.order import in_order
from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)

__all__ = ["Dataset", "data_root", "datasets", "in_order", "load_dataset"]
