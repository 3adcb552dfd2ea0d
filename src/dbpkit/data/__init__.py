"""Labelled images, from files or a library, with ids that always mean the same example.

An example's id is its place in the original file, or a hash of its path, and never its place in a batch or a
subset: the noise of an example follows its id.
"""

from dbpkit.data.dataset import Dataset, data_root, datasets, load_dataset
from dbpkit.data.order import in_order
from dbpkit.foundation.registry import import_siblings

import_siblings(__name__, __path__)

__all__ = ["Dataset", "data_root", "datasets", "in_order", "load_dataset"]
