"""A run in one file that a stranger can re-run: packed, judged again, and ranked beside others."""
