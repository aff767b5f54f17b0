"""Checks whether a state dict fits an optimizer, before anything of it is loaded, and does what torch's loading leaves out.

What is saved is torch's own format; nothing here writes one.
"""
