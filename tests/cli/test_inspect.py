"""`worldstereo inspect` of a place and of AnyRecon's files."""

import json

import pytest
from helpers.anyrecon_files import write_anyrecon
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app

FIGURES = {
    "images": 4,
    "registered": 3,
    "left_out": {"d.jpg": "It is black (mean grey level 2 of 255)."},
    "metric": False,
    "seconds": {"photographs": 1.2, "registration": 30.6},
    "points": 1200,
    "observed_points": 1000,
    "estimated_points": 200,
    "splats": None,
    "mesh_triangles": 55,
    "source": "photographs",
    "poses_from": "photographs",
    "notes": ["One photograph is turned."],
}


def _inspect(*arguments):
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def place(tmp_path):
    for name in ("world.wsmap", "cloud.ply", "mesh.glb"):
        (tmp_path / name).write_bytes(b"0" * 3_000_000)
    for name in ("colmap", "observed"):
        (tmp_path / name).mkdir()
    (tmp_path / "figures.json").write_text(json.dumps(FIGURES))
    return tmp_path


def test_a_place_is_described_with_what_was_left_out(place):
    status, output = _inspect(place)
    assert status == 0
    for expected in (
        "3 of 4 registered", "arbitrary (metric: false)", "1,200 (1,000 observed, 200 estimated)",
        "mesh.glb 3.0 MB, the mesh, 55 triangles", "splats.ply not made", "registration 31", "d.jpg: It is black",
        "One photograph is turned.",
    ):  # fmt: skip
        assert expected in output
    assert "option" not in output
    status, output = _inspect(place, "--variant", "camera")
    assert status == 1
    assert "--variant is of checkpoints" in output


def test_a_place_that_lost_a_file_is_not_complete(place):
    (place / "mesh.glb").unlink()
    status, output = _inspect(place)
    assert status == 1
    assert "MISSING: the mesh" in output


def test_figures_of_something_else_are_no_place(tmp_path):
    (tmp_path / "figures.json").write_text('{"images": 3}')
    status, output = _inspect(tmp_path)
    assert status == 1
    assert "registered" not in output


def test_anyrecons_files_are_compared_with_the_network(tmp_path):
    folder = write_anyrecon(tmp_path / "weights")
    status, output = _inspect(f"anyrecon:{folder}")
    assert status == 0, output
    assert "rank 2" in output
    assert "in bfloat16" in output
    for name in ("full_attention.ckpt", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        assert name in output
    assert _inspect(f"anyrecon:{folder}:sparse")[0] == 0
    next(folder.glob("diffusion_pytorch_model-00002*")).unlink()
    status, output = _inspect(f"anyrecon:{folder}")
    assert status == 1
    assert "problem" in output
    status, output = _inspect(f"anyrecon:{tmp_path / 'none'}")
    assert status == 1
    assert "There is no" in output
