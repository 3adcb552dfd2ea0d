"""Published tables as data, what stands in for their models on this machine, and what was measured beside them."""
