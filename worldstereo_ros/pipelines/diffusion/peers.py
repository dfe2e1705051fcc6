"""Ends a process when another one of the same model has ended.

A process that waits for another on a GPU waits without end: neither NCCL nor `torchrun` tells it within seconds. So
threads hold a connection between the first process and each other one, which breaks when one of them ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

GRACE_S = 4.0  # between the signal and the end of a process that does not react to it


class PeerWatch:
    """Watches the other processes until `stop`; must be made in all processes, with the same group.

    Args:
        group: gloo group of all processes, used for nothing else.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._stopping = group, False
        rank = dist.get_rank()
        self._peers = range(1, dist.get_world_size()) if rank == 0 else [0]
        self._threads = [threading.Thread(target=self._watch, args=(peer,), daemon=True) for peer in self._peers]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the watch; all processes must call it. To be called before the group is destroyed."""
        self._stopping = True
        try:
            for peer in self._peers:
                dist.send(torch.ones(1), peer, group=self._group)
        except RuntimeError:  # it has ended already
            pass
        for thread in self._threads:
            thread.join(GRACE_S)

    def _watch(self, peer: int) -> None:
        try:
            dist.recv(torch.zeros(1), peer, group=self._group)
        except RuntimeError:  # the connection broke
            if not self._stopping:
                end_process(peer)


def end_process(peer: int) -> None:
    """Says which process has ended, and ends this one."""
    print(
        f"Process {peer} of the model has ended, so process {dist.get_rank()} ends, too. Look at what process {peer} "
        "wrote, and start all processes again.",
        file=sys.stderr,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGTERM)  # programs save what they have
    time.sleep(GRACE_S)
    os._exit(1)
