"""Networks with runs of their own in a package: sizes, what stays, and what is refused."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from worldstereo_ros.cli.main import app
from worldstereo_ros.models.checkpoints.saving import save_weights, write_json
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.pointmaps.autoencoder import PointmapAutoencoder
from worldstereo_ros.models.pointmaps.model import PointmapModel, save_part
from worldstereo_ros.models.pointmaps.network import PointmapNetwork
from worldstereo_ros.models.pointmaps.refiner import NETWORK_FOLDER, PointmapRefiner, RefinerModel
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.pipelines.pointmaps.refinement import (
    WITHOUT_PRIOR_FOLDER,
    estimate_without_prior,
    load_model,
    model_folder,
)
from worldstereo_ros.pipelines.stereo.painting import load_painter
from worldstereo_ros.training.network_packaging import NETWORKS, find_networks, package_networks
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.weights.bundled import DEFAULT_MODEL, bundled_folder

pytestmark = pytest.mark.usefixtures("one_thread")
STEM = "diffusion_pytorch_model"


def write_refiner(folder, **changes) -> StereoRefiner:
    """A run of `train stereo` that is done."""
    torch.manual_seed(0)
    model = StereoRefiner(**changes)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    save_weights(folder / "base" / "stereo", STEM, model.state_dict())
    write_json(folder / "base" / "stereo" / "config.json", {"_class_name": "StereoRefiner", **config})
    return model


def test_networks_of_full_size_fit_and_load(tmp_path):
    run, out = tmp_path / "run", tmp_path / "package"
    model = write_refiner(run)
    points = tmp_path / "pointmaps"
    PointmapModel(PointmapNetwork(), PointmapAutoencoder(), None).save(points)
    result = CliRunner().invoke(app, ["train", "package", str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    sizes = package_networks(points, out)
    assert set(sizes) == {"pointmaps"}
    without = tmp_path / "without"
    depth = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth")
    network = PointmapNetwork(prior=False, depth_channels=depth.config.widths[0])
    PointmapModel(network, PointmapAutoencoder(), None).save(without)
    assert set(package_networks(without, out)) == {"pointmaps-no-prior"}
    assert set(find_networks(out)) == set(NETWORKS)
    painter = load_painter(str(out))
    loaded, expected = painter.model.state_dict(), model.state_dict()
    assert all(torch.allclose(loaded[name], expected[name], rtol=0.01, atol=1e-3) for name in expected)
    assert load_model(out / "base" / "pointmaps").network.config.width == PointmapNetwork().config.width
    for name, network in NETWORKS.items():
        files = list((out / "base" / name).rglob("*.safetensors"))
        assert 0.5 * network.max_bytes < sum(file.stat().st_size for file in files) <= network.max_bytes
    assert sorted(path.name for path in (out / "base").iterdir()) == ["pointmaps", "pointmaps-no-prior", "stereo"]


def test_a_refiner_takes_the_place_of_a_network_of_the_published_form(tmp_path):
    run, out = tmp_path / "run", tmp_path / "package"
    torch.manual_seed(0)
    small = {"widths": (8, 12, 16), "blocks": (1, 1), "layers": 1, "heads": 2, "width": 8}
    config = {"width": 48, "heads": 2, "depth": 1, "pixel_widths": (16, 24)}
    PointmapModel(PointmapNetwork(**config), PointmapAutoencoder(), None).save(tmp_path / "flow")
    package_networks(tmp_path / "flow", out)
    refiner = PointmapRefiner(**small)
    save_part(run / NETWORK_FOLDER, refiner, refiner.state_dict(), torch.float32)
    assert set(package_networks(run, out)) == {"pointmaps"}
    folder = out / "base" / "pointmaps"
    assert sorted(path.name for path in folder.iterdir()) == [NETWORK_FOLDER]
    loaded = load_model(folder)
    assert isinstance(loaded, RefinerModel)
    torch.testing.assert_close(loaded.network.extra[0].weight, refiner.extra[0].weight, rtol=0.01, atol=1e-3)
    with pytest.raises(InputError, match="refines a prior"):
        estimate_without_prior([np.zeros((64, 64, 3), np.uint8)] * 2, None, loaded)


def test_a_network_without_prior_has_a_name_of_its_own_and_replaces_nothing(tmp_path):
    out = tmp_path / "package"
    config = {"width": 48, "heads": 2, "depth": 1, "pixel_widths": (16, 24)}
    PointmapModel(PointmapNetwork(**config), PointmapAutoencoder(), None).save(tmp_path / "flow")
    package_networks(tmp_path / "flow", out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    channels = load_depth_network(bundled_folder(DEFAULT_MODEL) / "base" / "depth").config.widths[0]
    without = PointmapNetwork(**config, prior=False, depth_channels=channels)
    PointmapModel(without, PointmapAutoencoder(), None).save(tmp_path / "without")
    assert set(package_networks(tmp_path / "without", out)) == {WITHOUT_PRIOR_FOLDER}
    assert all(file.read_bytes() == data for file, data in before.items())
    # By this name `--prior none` looks for the bundled network.
    assert model_folder(prior=False).name == WITHOUT_PRIOR_FOLDER
    loaded = load_model(out / "base" / WITHOUT_PRIOR_FOLDER)
    assert loaded.network.config.prior is False


def test_what_cannot_be_packaged_is_refused_and_nothing_is_lost(tmp_path):
    small = {"width": 32, "heads": 2, "depth": 1, "pixel_width": 8}
    run, out = tmp_path / "run", tmp_path / "package"
    write_refiner(run, **small)
    package_networks(run, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    write_refiner(tmp_path / "large", width=256, heads=4, depth=4)
    with pytest.raises(InputError, match="at most 5 MB are allowed"):
        package_networks(tmp_path / "large", out)
    bad = write_refiner(tmp_path / "bad", **small).state_dict()
    bad["out.bias"][0] = float("nan")
    save_weights(tmp_path / "bad" / "base" / "stereo", STEM, bad)
    with pytest.raises(CheckpointError, match="not finite"):
        package_networks(tmp_path / "bad", out)
    with pytest.raises(InputError, match="has no network of stereo or pointmaps"):
        package_networks(tmp_path / "nothing", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(InputError, match="is not a package"):
        package_networks(run, tmp_path / "mine")
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
