"""The networks that a weights file or a training spec can name."""

from collections.abc import Callable
from typing import Any

from dbpkit.foundation.registry import Registry

networks: Registry[Callable[..., Any]] = Registry("network")
