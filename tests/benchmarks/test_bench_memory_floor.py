"""The benchmark of rendering and memory against the memory floor runs at toy size, and its floor is one."""

import json

import bench_memory_floor
import pytest
import torch


@pytest.mark.usefixtures("one_thread")
def test_every_kernel_is_slower_than_its_floor(tmp_path, capsys):
    rows = bench_memory_floor.main(["--toy", "--threads", "1", "--json", str(tmp_path / "rows.json")])
    kernels = {name: row for name, row in rows.items() if "ms" in row}
    assert {"splatting", "fusing a frame", "a path of the geometric pipeline"} <= set(kernels)
    assert all(row["times_the_floor"] > 1 for row in kernels.values())
    points, pixels = 20_000, 160 * 120
    assert kernels["splatting"]["mb"] == pytest.approx(2 * (20 * points + 9 * pixels) / 1e6)
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert "times the floor" in capsys.readouterr().out


def test_missing_gpu_is_reported():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match="no CUDA GPU; remove --device cuda"):
        bench_memory_floor.main(["--device", "cuda"])
