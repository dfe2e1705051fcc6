"""Runs as each of two processes for `test_peers.py`: the second one ends, the first one waits for it in vain."""

import os
import time

from worldstereo_ros.pipelines.diffusion.distributed import init_process_groups

if __name__ == "__main__":
    init_process_groups("cpu")
    print("ready", flush=True)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    time.sleep(100)
