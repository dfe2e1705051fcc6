"""What `worldstereo panorama` reads."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from worldstereo_ros.cli import panorama as command
from worldstereo_ros.cli.main import app
from worldstereo_ros.cli.panorama import doubt_distance, read_distance, read_panorama
from worldstereo_ros.utils.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def _write(path, image=IMAGE, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_large_panorama_is_read_at_reduced_size(tmp_path, monkeypatch, name):
    monkeypatch.setattr(command, "MAX_PANORAMA_PIXELS", 200 * 100)
    columns = np.broadcast_to(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], (400, 800, 3))
    image, notes = read_panorama(_write(tmp_path / name, np.ascontiguousarray(columns)))
    assert image.shape == (100, 200, 3)
    np.testing.assert_allclose(image[50, :, 0].astype(float), np.linspace(0, 255, 200), atol=5)
    assert notes == [f"{name} is 800x400; it is read at 200x100, which is finer than the views that are made of it."]


def test_more_pixels_than_a_node_accepts_are_read(tmp_path):
    """A consumer's 360 camera takes 72 megapixels."""
    Image.new("RGB", (11968, 5984), (90, 120, 60)).save(tmp_path / "a.jpg", quality=30)
    image, notes = read_panorama(tmp_path / "a.jpg")
    assert image.shape == (2048, 4096, 3)
    assert "11968x5984; it is read at 4096x2048" in notes[0]


def test_only_exif_that_leaves_a_panorama_level_is_followed(tmp_path):
    image, notes = read_panorama(_write(tmp_path / "a.png", orientation=3))
    np.testing.assert_array_equal(image, IMAGE[::-1, ::-1])
    assert notes == ["a.png is turned upright by its EXIF (orientation 3)."]
    image, notes = read_panorama(_write(tmp_path / "b.png", orientation=6))
    np.testing.assert_array_equal(image, IMAGE)
    assert not notes


def test_distances_are_read_in_metres_and_millimetres(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 8), 2.5))
    Image.fromarray(np.full((4, 8), 2500, np.uint16)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.png"):
        np.testing.assert_allclose(read_distance(tmp_path / name), 2.5)


def test_distances_in_another_unit_are_doubted(tmp_path):
    """Centimetres passed for metres, and of millimetres what is nearer than one metre was kept without a word."""
    room = np.linspace(0.6, 4, 32).reshape(4, 8).repeat(8, 0).repeat(8, 1)
    for factor, name, doubt in (
        (1.0, "a.npy", ""),
        (100.0, "a.npy", "read as metres; is it in another unit?"),
        (1000.0, "a.npy", "read as metres; is it in another unit?"),
        (1000.0, "a.png", ""),
        (10.0, "a.png", "read as millimetres; is it in another unit?"),
    ):
        file = tmp_path / name
        if name == "a.npy":
            np.save(file, room * factor)
        else:
            Image.fromarray((room * factor).astype(np.uint16)).save(file)
        said = doubt_distance(file, read_distance(file))
        assert said.endswith(doubt) if doubt else not said


def test_unreadable_distances_are_explained(tmp_path):
    header = b"\x93NUMPY\x01\0" + (118).to_bytes(2, "little")
    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 2000000), }"
    (tmp_path / "huge.npy").write_bytes(header + huge.ljust(117) + b"\n")
    (tmp_path / "lfs.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "cut.npy").write_bytes(header)
    np.save(tmp_path / "many.npy", np.ones((9000, 8000), np.uint8))
    np.save(tmp_path / "flat.npy", np.ones(8))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    np.savez(tmp_path / "two.npz", np.ones(2))
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    words = {
        "huge": "cannot be read",
        "lfs": "It is a Git LFS pointer",
        "cut": "cannot be read",
        "many": "8000x9000; at most 64000000 pixels",
        "flat": r"of shape \(8,\)",
        "objects": "cannot be read",
        "two": "several arrays",
        "missing": "No such file",
    }
    for name, match in words.items():
        with pytest.raises((InputError, ValueError), match=match):
            read_distance(tmp_path / f"{name}.npy")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth-model", "none"], "--depth-model none estimates none"),
        (["--depth-model", "small", "--distance", "d.npy"], "one of the two was expected"),
        (["--model", "geometric", "--prompt", "a square"], "--prompt is for those"),
        (["--at", "0", "0", "nan"], "not finite"),
        (["--distance", "d.npy"], "d.npy"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["panorama", "a.png", *arguments, "--out", "out"])
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
