"""The stereo topics paint with the bundled network where an installation has it."""

import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.pipelines.stereo import painting
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights import bundled

pytest.importorskip("rclpy")
pytest.importorskip("stereo_msgs")


def test_the_bundled_network_paints_if_it_is_there(tmp_path, monkeypatch):
    from worldstereo_ros.ros.node.stereo import default_model, make_pipeline

    for module in (bundled, painting):
        monkeypatch.setattr(module, "bundled_folder", lambda name: tmp_path)
    camera, settings = Camera.from_fov(160, 96, 1.0), StereoSettings()
    assert default_model("cuda") == "geometric"
    small = {"width": 32, "heads": 2, "depth": 1, "pixel_width": 8}
    save_weights(tmp_path / "base" / "stereo", "diffusion_pytorch_model", StereoRefiner(**small).state_dict())
    write_json(tmp_path / "base" / "stereo" / "config.json", {"_class_name": "StereoRefiner", **small})
    assert default_model("cuda") == "small"
    assert make_pipeline(camera, settings, device="cpu").painter is None  # too slow for a running camera
    first, second = (make_pipeline(camera, settings, model="small", device="cpu") for _ in range(2))
    assert first.name == "small"
    assert first.painter is not second.painter  # frames of one camera are not those of another
    assert make_pipeline(camera, settings, model="geometric", device="cpu").painter is None
    with pytest.raises(InputError, match="nowhere"):
        make_pipeline(camera, settings, model=str(tmp_path / "nowhere"), device="cpu")
