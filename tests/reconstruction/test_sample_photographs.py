import numpy as np
import pytest
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.io.images import read_image
from worldstereo_ros.io.photos import read_photo_header
from worldstereo_ros.reconstruction import sample_photographs
from worldstereo_ros.reconstruction.sample_photographs import write_sample_photographs
from worldstereo_ros.utils.errors import InputError


def test_photographs_of_a_world_are_like_those_of_a_phone(tmp_path):
    seen: list[int] = []
    files = write_sample_photographs(tmp_path / "photos", count=2, size=(96, 72), on_photograph=seen.append)
    assert [file.name for file in files] == ["IMG_0001.jpg", "IMG_0002.jpg"]
    assert seen == [1, 2]
    one, other = (read_image(file).astype(np.float32) for file in files)
    assert one.shape == (72, 96, 3)
    assert one.std() > 10
    assert 1 < np.abs(one - other).mean() < 60
    focal = 48 / np.tan(np.radians(32.5))
    assert read_photo_header(files[0]).focal_px(96, 72) == pytest.approx(focal, rel=0.02)
    with pytest.raises(InputError, match="not an empty folder"):
        write_sample_photographs(tmp_path / "photos", count=2, size=(96, 72))


def test_the_demo_writes_photographs_and_says_what_to_do_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_photographs, "render_view", _blank)
    folder = tmp_path / "photos"
    result = CliRunner().invoke(app, ["demo", "--photographs", str(folder)])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "16 photographs of a procedural room" in output
    assert "worldstereo reconstruct" in output
    assert len(list(folder.glob("*.jpg"))) == 16
    result = CliRunner().invoke(app, ["demo", "--photographs", str(tmp_path / "b"), "--bag", str(tmp_path / "c")])
    assert result.exit_code == 1
    assert "remove --bag and --sequence" in " ".join(result.output.split())


def _blank(scene, camera, pose):
    class Blank:
        image = np.zeros((camera.height, camera.width, 3), np.uint8)

    return Blank
