"""States themselves: whose memory they are in, what somebody else does to it, how steps are counted, what an interrupt leaves.

What state dicts say is tested in ``tests/optim/checkpoint``.
"""
