"""One evaluation: a spec, the loop that fills a run directory, and the checks that travel with it."""
