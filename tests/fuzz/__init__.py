"""Fuzzes the package with hypothesis: draws what nobody lists, runs it, and compares with an answer from elsewhere.

- `strategies`: what can be drawn, as data: plans of trainings, numbers, layouts, changes of state dicts. A drawn example prints as
  Python, so that it can be pasted.
- `engine`: trains by a plan; who computes (the reference, the kernels, torch.optim) and how (flat, offloaded, in the backward pass).
- `test_plans`: the kernels against the reference bit for bit, without regularisation against torch.optim, sums against float64.
- `test_penalties`: values, slopes, curvatures and proximal operators against their definitions in float64.
- `test_state_machine`: saving, copying and exchanging in any order, against a run that nobody interrupts and against torch.optim.
- `test_hostile_states`: damaged state dicts load and step, or are refused before anything has changed.
- `test_ranks`: two ranks against one process.

`make test` runs a small part that is the same every time (profile "short" in `profiles`); `make fuzz` goes on by chance, for minutes or
hours (profile "long"), and a process that dies is a finding, too. Whatever it finds is printed with the lines that reproduce it: paste the example
as ``@example(...)`` above the test that failed, where it stays.
"""
