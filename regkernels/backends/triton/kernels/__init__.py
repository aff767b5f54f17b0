"""Holds what runs on the device, in Triton's language. Read rules.py and shrink.py beside regkernels/reference/."""
