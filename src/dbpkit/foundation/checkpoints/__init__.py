"""The one reader of foreign checkpoints: nothing in a file is run, imported, looked up, opened or written.

`read_checkpoint` opens torch's zip and legacy files, pickles and safetensors into plain values, tensors that
are read when they are asked for, and records of objects. docs/reference/security.md says what is refused.
"""

from dbpkit.foundation.checkpoints.reading import Checkpoint as Checkpoint
from dbpkit.foundation.checkpoints.reading import kind_of_program as kind_of_program
from dbpkit.foundation.checkpoints.reading import read_checkpoint as read_checkpoint
from dbpkit.foundation.checkpoints.values import Name as Name
from dbpkit.foundation.checkpoints.values import Record as Record
from dbpkit.foundation.checkpoints.values import Stored as Stored
from dbpkit.foundation.checkpoints.walking import size as size
from dbpkit.foundation.checkpoints.walking import tensors_of as tensors_of
