"""Holds what backends are given: tables of segments, rows of hyper-parameters, formats and groups, and their way to a device.

Nothing here computes a step or knows who asks for one.
"""
