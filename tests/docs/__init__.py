"""That the pages, README.md and the examples run and say what is so. Pages about one subject may be tested with it."""
