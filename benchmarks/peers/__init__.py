"""Holds those who are compared: implementations of the same thing, each optional, each checked before it is timed.

How they are timed, and on which tensors, is not here but in `benchmarks`.
"""

from __future__ import annotations

from benchmarks.peers import bitsandbytes, deepspeed, optimi, own, torch_optimizers, torchao
from benchmarks.peers.peer import Peer, Step, Sums, Task, Unsupported
from benchmarks.peers.penalties import PENALTIES, Penalty

__all__ = ["PEERS", "PENALTIES", "Peer", "Penalty", "Step", "Sums", "Task", "Unsupported"]

# What is not installed is missed only when it is looked for: `Peer.find` imports it.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *torch_optimizers.PEERS,
        optimi.PEER,
        deepspeed.PEER,
        bitsandbytes.PEER,
        torchao.PEER,
        *own.PEERS,
    )
}
