"""Tests the operators registered with torch, by torch's own checks and under torch.compile. Their values are not tested here but in
`tests/penalties`.
"""
