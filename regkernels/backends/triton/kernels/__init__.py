"""Holds what runs on the device, in Triton's language, one file per idea: rules.py and step.py make a step, groups.py that of groups,
shrink.py and penalties.py regularise, sums.py, pairs.py and values.py add up, rounding.py saves bits. Read them beside regkernels/reference/.

How kernels are launched is not said here but in `regkernels.backends.triton.launch`, and how their tables are filled in
`regkernels.backends.triton.tables`.
"""
