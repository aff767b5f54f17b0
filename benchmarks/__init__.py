"""Side-by-side benchmarks: one file per question, one kind of record."""
