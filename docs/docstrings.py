"""What mkdocstrings reads of docstrings: a section ``Example:`` is shown as the code that it is."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Griffe knows the section by its plural alone."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes the docstring in memory; the source keeps the singular."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
