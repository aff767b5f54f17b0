"""More than one process: parameters that are spread over ranks, and what ranks tell each other."""
