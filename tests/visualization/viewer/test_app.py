"""The viewer's page: its nodes, toggles, rides and playing, addresses, and the command."""

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
from worldstereo_ros.visualization.viewer.app import check_address, open_page, serve
from worldstereo_ros.visualization.viewer.scene import COLOURINGS


@pytest.fixture
def page(wall_views):
    page = open_page(imagined_viewable(wall_views), port=0)
    yield page
    page.stop()


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


def test_page_answers_and_has_its_nodes(page):
    status, body = get(page.url)
    assert status == 200
    assert b"<html" in body[:2000].lower()
    scene = page.server.scene
    for name in ("/path/line", "/path/selected", "/path/cameras/0002", "/memory/0000", "/grid"):
        assert scene.get_handle_by_name(name) is not None, name
    parts = page.scene._points
    assert sum(len(part.handle.points) for part in parts) == 12000 == page.scene.shown_points
    for origin, above in ((True, False), (True, True), (False, False), (False, True)):
        assert any(part.observed == origin and part.above == above for part in parts)


def test_toggles_show_and_hide(page):
    scene = page.scene
    assert not any(part.handle.visible for part in scene._points if part.above)
    scene.cut_ceiling = False
    scene.show_imagined = scene.show_given = False
    scene.refresh()
    assert all(part.handle.visible == part.observed for part in scene._points)
    assert not scene.given_frusta[0][0].visible
    assert scene.path_frusta[0][0].visible


def test_colours_sizes_and_pictures_reach_the_nodes(page):
    scene = page.scene
    imagined = next(part for part in scene._points if not part.observed)
    seen = {colouring: (scene.recolour(colouring), imagined.handle.colors[0].tolist())[1] for colouring in COLOURINGS}
    assert len({tuple(colour) for colour in seen.values()}) == 3
    before = imagined.handle.point_size
    scene.resize_points(2.0)
    assert imagined.handle.point_size == pytest.approx(2 * before)
    scene.show_pictures(False)
    assert scene.path_frusta[0][0].image is None
    scene.show_pictures(True)
    assert scene.path_frusta[0][0].image is not None


def test_selecting_moves_the_frustum_and_changes_the_pictures(page, wall_views):
    first = page._strip.content
    page._slider.value = 3
    assert page.index == 2
    assert page._strip.content != first
    handle = page.server.scene.get_handle_by_name("/path/selected")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    np.testing.assert_array_equal(handle.image, wall_views[2].image)


class FakeClient:
    """A browser that remembers where it was told to look from."""

    def __init__(self):
        self.client_id = 7
        self.camera = SimpleNamespace(
            up_direction=np.array([0.0, 0, 1]), position=np.zeros(3), look_at=np.ones(3), fov=0.5
        )

    def atomic(self):
        return contextlib.nullcontext()


def test_riding_looks_through_the_cameras_and_returns(page, monkeypatch):
    client = FakeClient()
    monkeypatch.setattr(page.server, "get_clients", lambda: {7: client})
    page._rides.value = True
    page.select(1)
    camera = client.camera
    np.testing.assert_allclose(camera.position, POSES[1, :3, 3])
    ahead = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
    np.testing.assert_allclose(ahead, POSES[1, :3, 2], atol=1e-9)
    np.testing.assert_allclose(camera.up_direction, -POSES[1, :3, 1])
    assert camera.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert not page.scene.path_frusta[0][0].visible
    assert any(part.handle.visible for part in page.scene._points if part.above)
    page._rides.value = False
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


def test_playing_steps_on_and_stops(page):
    page._speed.value = 12
    page.play(True)
    seen, until = set(), time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < until:
        seen.add(page.index)
        time.sleep(0.02)
    page.play(False)
    assert seen == {0, 1, 2}
    assert page._button.label == "Play"


def test_stopping_frees_the_port_and_ends_the_thread(wall_views):
    page = open_page(imagined_viewable(wall_views), port=0)
    port = page.server.get_port()
    page.stop()
    assert not page._thread.is_alive()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        get(page.url)
    again = open_page(imagined_viewable(wall_views), port=port)
    assert get(again.url)[0] == 200
    again.stop()


def test_points_alone_and_cameras_alone_make_a_page(wall_views):
    full = imagined_viewable(wall_views)
    bare = replace(full, given=(), imagined=(), path=POSES[:0], observed=np.ones(12000, bool))
    cameras = replace(full, points=full.points[:0], colours=full.colours[:0], observed=full.observed[:0])
    for viewable in (bare, cameras):
        page = open_page(viewable, port=0)
        try:
            assert get(page.url)[0] == 200
        finally:
            page.stop()


def test_port_that_is_taken_is_refused(wall_views):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 is taken.*--port {port + 1}"):
            open_page(imagined_viewable(wall_views), port=port)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("203.0.113.5", 8080, "Nothing can listen on"),
        ("no.such.host.invalid", 8080, "no address"),
        ("127.0.0.1", 70000, "no port"),
    ],
)
def test_addresses_that_cannot_be_listened_on(host, port, words):
    with pytest.raises(OSError, match=words):
        check_address(host, port)


def test_missing_viser_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[view\]'"):
        serve(tmp_path)


def test_command_serves_until_interrupted(tmp_path):
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
        until = time.monotonic() + 60
        while "Ctrl-C" not in log.read_text() and process.poll() is None and time.monotonic() < until:
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


def test_frusta_stand_where_the_cameras_stood(page):
    handle = page.server.scene.get_handle_by_name("/path/cameras/0002")
    np.testing.assert_allclose(handle.position, POSES[2, :3, 3], atol=1e-6)
    w, x, y, z = handle.wxyz
    forward = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(forward, invert_pose(POSES[2])[2, :3], atol=1e-6)
    assert handle.fov == pytest.approx(2 * np.arctan(15 / CAMERA.fy))
    assert handle.aspect == pytest.approx(40 / 30)
