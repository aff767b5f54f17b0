"""State dicts: whether one fits an optimizer, found out before anything of it is loaded, and what torch's loading leaves out.

What is saved is torch's own format; nothing here writes one.
"""
