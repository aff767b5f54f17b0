"""Predicts the speed of kernels from their machine code, without a device: counts instructions by the unit that executes them, follows
a warp through its waits, and divides by what a chip has of each.

Nothing here is measured. A prediction says what bounds a kernel and how two versions of it compare; a device has the last word.
"""
