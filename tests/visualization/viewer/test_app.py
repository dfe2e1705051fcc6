"""The viewer's page: nodes, toggles, following and playing the path, addresses, and the command."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.viewer import CAMERA, POSES, imagined_viewable

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.visualization.viewer.app import check_address, open_page, serve
from worldstereo_ros.visualization.viewer.points import COLOURINGS


@pytest.fixture
def page(wall_views):
    page = open_page(imagined_viewable(wall_views), port=0)
    yield page
    page.stop()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


def test_page_is_served_and_has_its_nodes(page):
    status, body = get(page.url)
    assert status == 200
    assert b"<html" in body[:2000].lower()
    scene = page.server.scene
    for name in ("/path/line", "/path/selected", "/path/cameras/0002", "/memory/0000", "/grid"):
        assert scene.get_handle_by_name(name) is not None, name
    clouds = page.scene.clouds
    assert sum(len(cloud.points) for cloud in clouds) == 12000 == page.scene.point_count
    for kind in (Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED):
        for above in (False, True):
            assert any(cloud.provenance == kind and cloud.above_ceiling == above for cloud in clouds)


def test_toggles_show_and_hide_nodes(page):
    scene = page.scene
    assert not any(cloud.handle.visible for cloud in scene.clouds if cloud.above_ceiling)
    scene.hide_ceiling = False
    scene.show_observed_cameras = False
    for kind in (Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED):
        scene.shown_classes = {kind}
        scene.refresh()
        assert all(cloud.handle.visible == (cloud.provenance == kind) for cloud in scene.clouds)
    assert not scene.observed_frusta[0][0].visible
    assert scene.path_frusta[0][0].visible


def test_colours_sizes_and_images_reach_the_nodes(page):
    scene = page.scene
    imagined = next(cloud for cloud in scene.clouds if cloud.provenance == Provenance.IMAGINED)
    colours = set()
    for colouring in COLOURINGS:
        scene.recolour(colouring)
        colours.add(tuple(imagined.handle.colors[0].tolist()))
    assert len(colours) == 3
    before = imagined.handle.point_size
    scene.resize_points(2.0)
    assert imagined.handle.point_size == pytest.approx(2 * before)
    scene.show_images(False)
    assert scene.path_frusta[0][0].image is None
    scene.show_images(True)
    assert scene.path_frusta[0][0].image is not None


def test_thresholds_hide_points_of_low_confidence(page):
    scene = page.scene
    scene.show_unsure = True
    total = {kind: np.sum(page.viewable.provenance == kind) for kind in page.viewable.classes}

    def shown():
        counts = dict.fromkeys(total, 0)
        for cloud in scene.clouds:
            if not cloud.empty:
                counts[cloud.provenance] += len(cloud.handle.points)
                assert len(cloud.handle.colors) == len(cloud.handle.points)
        return counts

    scene.filter_points(0.5, 0.0)
    assert shown()[Provenance.OBSERVED] == total[Provenance.OBSERVED]
    assert shown()[Provenance.ESTIMATED] == total[Provenance.ESTIMATED]  # a camera saw their colour
    assert 0.5 < shown()[Provenance.IMAGINED] / total[Provenance.IMAGINED] < 0.8
    scene.filter_points(0.0, 0.5)
    assert 0.5 < shown()[Provenance.ESTIMATED] / total[Provenance.ESTIMATED] < 0.8
    scene.recolour(COLOURINGS[-1])  # keeps the thresholds
    assert 0.5 < shown()[Provenance.ESTIMATED] / total[Provenance.ESTIMATED] < 0.8
    scene.filter_points(1.0, 1.0)
    assert shown()[Provenance.OBSERVED] == total[Provenance.OBSERVED]
    scene.filter_points(0.0, 0.0)
    assert shown() == total


def test_unsure_points_are_hidden_until_asked_for(page):
    scene = page.scene
    assert 0 < scene.unsure_count < np.sum(page.viewable.provenance == Provenance.IMAGINED)

    def shown():
        return sum(len(cloud.handle.points) for cloud in scene.clouds if not cloud.empty)

    assert shown() == scene.point_count - scene.unsure_count
    controls = {handle.label: handle for handle in page.server.gui._gui_input_handle_from_uuid.values()}
    (box,) = (handle for label, handle in controls.items() if label.startswith("Unsure points"))
    box.value = True
    assert scene.show_unsure
    assert shown() == scene.point_count
    scene.recolour(COLOURINGS[-1])
    assert shown() == scene.point_count
    box.value = False
    assert shown() == scene.point_count - scene.unsure_count


def test_controls_have_a_checkbox_for_each_class_and_a_slider_for_each_confidence(page):
    controls = {handle.label: handle for handle in page.server.gui._gui_input_handle_from_uuid.values()}
    assert {"Observed points", "Estimated points", "Imagined points"} <= controls.keys()
    controls["Imagined points"].value = False
    assert page.scene.shown_classes == {Provenance.OBSERVED, Provenance.ESTIMATED}
    controls["Depth confidence"].value = 0.5
    assert all((cloud.depth_confidence.min() >= 0.5) or len(cloud.handle.points) < len(cloud.points)
               for cloud in page.scene.clouds)  # fmt: skip
    controls["Colour confidence"].value = 0.5
    assert page.scene._thresholds == (0.5, 0.5)


def test_select_moves_the_frustum_and_changes_the_images(page, wall_views):
    first = page._strip.content
    page._slider.value = 3
    assert page.index == 2
    assert page._strip.content != first
    handle = page.server.scene.get_handle_by_name("/path/selected")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    np.testing.assert_array_equal(handle.image, wall_views[2].image)


class FakeClient:
    """A browser that records its camera."""

    def __init__(self):
        self.client_id = 7
        self.camera = SimpleNamespace(
            up_direction=np.array([0.0, 0, 1]), position=np.zeros(3), look_at=np.ones(3), fov=0.5
        )

    def atomic(self):
        return contextlib.nullcontext()


def test_following_looks_through_the_cameras_and_returns(page, monkeypatch):
    client = FakeClient()
    monkeypatch.setattr(page.server, "get_clients", lambda: {7: client})
    page._follow.value = True
    page.select(1)
    camera = client.camera
    np.testing.assert_allclose(camera.position, POSES[1, :3, 3])
    ahead = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
    np.testing.assert_allclose(ahead, POSES[1, :3, 2], atol=1e-9)
    np.testing.assert_allclose(camera.up_direction, -POSES[1, :3, 1])
    assert camera.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert not page.scene.path_frusta[0][0].visible
    assert any(cloud.handle.visible for cloud in page.scene.clouds if cloud.above_ceiling)
    page._follow.value = False
    np.testing.assert_array_equal(camera.position, np.zeros(3))
    np.testing.assert_array_equal(camera.look_at, np.ones(3))
    assert camera.fov == 0.5
    assert page.scene.path_frusta[0][0].visible


def test_route_passes_through_the_views(page):
    route = page._route
    np.testing.assert_allclose(route[::6], POSES[:3], atol=1e-9)
    steps = np.linalg.norm(np.diff(route[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(steps[:12], steps[0], rtol=1e-6)
    assert (steps[12:] == 0).all()
    assert steps[0] > 0.01


def test_play_selects_all_views_and_pauses(page):
    page._speed.value = 12
    page.play(True)
    played, deadline = set(), time.monotonic() + 20
    while len(played) < 3 and time.monotonic() < deadline:
        played.add(page.index)
        time.sleep(0.02)
    page.play(False)
    assert played == {0, 1, 2}
    assert page._button.label == "Play"


def test_stop_frees_the_port_and_ends_the_thread(wall_views):
    page = open_page(imagined_viewable(wall_views), port=0)
    port = page.server.get_port()
    page.stop()
    assert not page._thread.is_alive()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(page.url)
    again = open_page(imagined_viewable(wall_views), port=port)
    assert get(again.url)[0] == 200
    again.stop()


def test_page_without_cameras_and_page_without_points_are_served(wall_views):
    full = imagined_viewable(wall_views)
    kinds = full.provenance
    bare = replace(full, observed_views=(), imagined=(), path=POSES[:0], provenance=np.full_like(kinds, 3))
    unknown = replace(bare, provenance=np.zeros_like(kinds), confidence=None, depth_confidence=None)
    cameras = replace(full, points=full.points[:0], colours=full.colours[:0], provenance=kinds[:0])
    for viewable in (bare, unknown, cameras):
        page = open_page(viewable, port=0)
        try:
            assert get(page.url)[0] == 200
        finally:
            page.stop()


def test_open_page_fails_if_the_port_is_taken(wall_views):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 is taken.*--port {port + 1}"):
            open_page(imagined_viewable(wall_views), port=port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.5", 8080, "Cannot listen on"),
        ("no.such.host.invalid", 8080, "not an address"),
        ("127.0.0.1", 70000, "not valid"),
    ],
)
def test_check_address_rejects_unusable_addresses(host, port, words):
    with pytest.raises(OSError, match=words):
        check_address(host, port)


def test_serve_says_how_to_install_viser(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[view\]'"):
        serve(tmp_path)


def test_view_command_serves_until_interrupted(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(f"property float {a}\n" for a in "xyz")
    (tmp_path / "a.ply").write_text(header + "end_header\n0 0 0\n1 0 0\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "worldstereo_ros.cli", "view", str(tmp_path / "a.ply"), "--port", str(port)]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while "Ctrl-C" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert get(f"http://127.0.0.1:{port}")[0] == 200
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
    output = log.read_text()
    assert process.returncode == 0, output
    assert f"http://127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_frusta_have_the_poses_of_the_cameras(page):
    handle = page.server.scene.get_handle_by_name("/path/cameras/0002")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    w, x, y, z = handle.wxyz
    forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(forward, invert_pose(POSES[2])[2, :3], atol=1e-6)
    assert handle.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert handle.aspect == pytest.approx(40 / 30)
