import os
import subprocess
import sys

import torch

from worldstereo_ros.utils.single_thread import single_thread

TWO_THREADS = """
import threading, torch
from worldstereo_ros.utils.single_thread import single_thread

def seen():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]

before = torch.get_num_threads()
try:
    with single_thread():
        inside, other = torch.get_num_threads(), seen()
        raise ValueError
except ValueError:
    pass
print(before, inside, other, torch.get_num_threads(), seen())
"""


def test_only_the_calling_thread_has_one_thread_and_only_inside():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", TWO_THREADS], env=environment, text=True, capture_output=True)
    assert done.stdout.split() in (["2", "1", "2", "2", "2"], ["2"] * 5), done.stderr  # 2: another OpenMP is in use


def test_results_are_the_same():
    matrix = torch.rand(200, 200, generator=torch.Generator().manual_seed(0))
    expected = matrix @ matrix
    with single_thread():
        torch.testing.assert_close(matrix @ matrix, expected)
