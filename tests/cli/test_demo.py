"""`worldstereo demo` as `make demo` runs it, smaller: the node in its own process, over the real middleware."""

import json

import numpy as np
import pytest
from helpers.checkpoints import DMD_VARIANT, write_small_checkpoint

import worldstereo_ros
from worldstereo_ros.cli import demo
from worldstereo_ros.evaluation import demo_scenarios
from worldstereo_ros.io.bags.files import Bag
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.memory.archive import load_archive

pytest.importorskip("rclpy", reason="the demo needs ROS 2: run `make setup`")
pytest.importorskip("worldstereo_ros.action", reason="the demo needs the built messages: run `make setup`")
from helpers.node_harness import reserved_domain

pytestmark = pytest.mark.ros
make_scenario = demo_scenarios.scene_scenario


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The output folder and the figures of a small demo."""

    def small_scenario(kind, seed, views):
        return make_scenario(kind, seed, views, observed_count=4, width=160, height=120)

    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, reserved_domain() as domain:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setattr(demo_scenarios, "scene_scenario", small_scenario)
        # A toy model replaces the bundled one in this process; the node's pipeline is geometric.
        package = tmp_path_factory.mktemp("package")
        write_small_checkpoint(package / "weights" / "small", (DMD_VARIANT,))
        patch.setattr(worldstereo_ros, "__path__", [str(package), *worldstereo_ros.__path__])
        figures = demo.run_demo(out, views=5, model="geometric")
    return out, figures


def test_demo_writes_all_files(demo_run):
    out, figures = demo_run
    for name in (
        "imagined.mp4",
        "contact_sheet.png",
        "cloud.ply",
        "cloud.png",
        "world.wsmap",
        "figures.json",
        "node.log",
    ):
        assert (out / name).stat().st_size > 0, name
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["views"] == 5
    assert figures["psnr_observed"] > figures["psnr_imagined"]
    assert 0 < figures["observed_fraction"] < 1


def test_demo_imagines_the_same_path_with_other_pipelines(demo_run):
    out, figures = demo_run
    assert figures["model"] == "geometric"
    (small,) = figures["beside"].values()
    assert figures["beside"].keys() == {"small"}
    # The observed pixels come from the same memory; the untrained model imagines the others worse.
    assert small["psnr_observed"] == pytest.approx(figures["psnr_observed"], abs=1.0)
    assert small["psnr_imagined"] < figures["psnr_imagined"]
    assert not (out / demo.OBSERVED_MAP_FILE).exists()


def test_demo_fails_at_once_if_the_node_cannot_be_configured(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    scenario = make_scenario("room", 0, 2, observed_count=2, width=64, height=48)
    monkeypatch.setattr(demo_scenarios, "scene_scenario", lambda *_: scenario)
    with reserved_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        with pytest.raises(demo.DemoError, match=r"could not be configured\. The model 'crystal-ball' is unknown"):
            demo.run_demo(tmp_path, model="crystal-ball")


def test_demo_writes_views_as_posed_sequences(demo_run):
    out, _ = demo_run
    sequence = open_sequence(out / "imagined")
    assert len(sequence) == 5
    assert sequence[0].depth is not None
    assert len(list((out / "imagined" / "observed").iterdir())) == 5
    assert len(open_sequence(out / "observed")) == 4


def test_saved_map_has_observed_and_imagined_points(demo_run):
    archive = load_archive(demo_run[0] / "world.wsmap")
    assert archive.cloud.observed.any()
    assert (~archive.cloud.observed).any()
    assert sum(view.observed is None for view in archive.bank.views) == 4


def test_bag_has_all_published_messages_and_can_be_played(demo_run):
    out, _ = demo_run
    with Bag(out / "bag") as bag:
        counts = {topic: sum(1 for _ in bag.messages([topic])) for topic in bag.topics}
    assert counts["/image"] == 4
    assert counts["/worldstereo/view"] == counts["/worldstereo/image"] == counts["/worldstereo/conditioning"] == 5
    assert counts["/worldstereo/map"] >= 1
    assert "/tf_static" in counts
    views = list(read_views(out / "bag", "/image", depth_topic="/depth"))
    assert len(views) == 4
    observed = open_sequence(out / "observed")
    np.testing.assert_allclose(views[2].world_from_camera, observed[2].world_from_camera, atol=1e-5)
    np.testing.assert_array_equal(views[2].image, observed[2].image)


def test_node_log_has_no_errors(demo_run):
    log = (demo_run[0] / "node.log").read_text()
    assert "Imagined 5 views" in log
    assert "Traceback" not in log
    assert "[ERROR]" not in log
