"""Published tables as data, and what was measured beside them, here or with models that stand in."""
