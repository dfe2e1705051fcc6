"""Files of Gaussian splats: equal after a round trip, by this reader and by another; damaged and foreign files."""

import gzip
import json
import struct

import numpy as np
import pytest
from helpers.splats import random_splats

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.gltf import GltfWriter
from worldstereo_ros.io.point_clouds import read_point_cloud
from worldstereo_ros.io.splats import SplatFileError, read_splats, write_splats
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats
from worldstereo_ros.utils.errors import InputError

ARRAYS = ("means", "quaternions", "scales", "opacities", "harmonics")


@pytest.mark.parametrize("coefficients", [1, 4, 16])
@pytest.mark.parametrize("suffix", [".ply", ".glb", ".gltf"])
def test_splats_come_back_equal(tmp_path, suffix, coefficients):
    splats = random_splats(coefficients=coefficients)
    write_splats(tmp_path / f"a{suffix}", splats, up=np.array([0.0, -1.0, 0.2]))
    again = read_splats(tmp_path / f"a{suffix}")
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(again, name), getattr(splats, name), rtol=2e-6, atol=2e-7, err_msg=name)
    np.testing.assert_array_equal(again.provenance, splats.provenance)
    assert again.metric is False


@pytest.mark.parametrize("coefficients", [1, 4, 16])
def test_another_reader_reads_the_same_from_ply(tmp_path, coefficients):
    gsply = pytest.importorskip("gsply")
    splats = random_splats(coefficients=coefficients)
    write_splats(tmp_path / "a.ply", splats)
    other = gsply.plyread(tmp_path / "a.ply")
    np.testing.assert_array_equal(other.means, splats.means)
    np.testing.assert_allclose(np.exp(other.scales), splats.scales, rtol=1e-6)
    np.testing.assert_allclose(other.quats, splats.quaternions, atol=1e-7)
    np.testing.assert_allclose(1 / (1 + np.exp(-other.opacities.ravel())), splats.opacities, atol=1e-6)
    np.testing.assert_array_equal(other.sh0, splats.harmonics[:, 0])
    if coefficients > 1:
        np.testing.assert_array_equal(other.shN, splats.harmonics[:, 1:])


def test_this_reader_reads_what_another_writer_wrote(tmp_path):
    gsply = pytest.importorskip("gsply")
    splats = random_splats(coefficients=4)
    data = gsply.GSData.from_arrays(
        splats.means,
        np.log(splats.scales),
        splats.quaternions,
        np.zeros(len(splats), np.float32),
        splats.harmonics[:, 0].copy(),
        splats.harmonics[:, 1:].copy(),
        format="ply",
    )
    data.save(tmp_path / "b.ply")
    again = read_splats(tmp_path / "b.ply")
    np.testing.assert_allclose(again.scales, splats.scales, rtol=1e-6)
    np.testing.assert_array_equal(again.harmonics, splats.harmonics)
    np.testing.assert_allclose(again.opacities, 0.5)
    assert (again.provenance == Provenance.UNKNOWN).all()


def test_spz_holds_the_splats_in_its_steps(tmp_path):
    gsply = pytest.importorskip("gsply")
    splats = random_splats(300)
    write_splats(tmp_path / "a.spz", splats)
    again = read_splats(tmp_path / "a.spz")
    np.testing.assert_allclose(again.means, splats.means, atol=2e-6)
    np.testing.assert_allclose(np.log(again.scales), np.log(splats.scales), atol=1 / 32 + 1e-4)
    np.testing.assert_allclose(again.opacities, splats.opacities, atol=0.5 / 255 + 1e-5)
    same = np.abs((again.quaternions * splats.quaternions).sum(axis=1))
    assert same.min() > np.cos(np.radians(0.2) / 2)
    inside = np.abs(splats.harmonics[:, 0]) < 3
    np.testing.assert_allclose(again.harmonics[:, 0][inside], splats.harmonics[:, 0][inside], atol=0.02)
    np.testing.assert_allclose(again.harmonics[:, 1:], splats.harmonics[:, 1:].clip(-1, 1), atol=0.01)
    assert (again.provenance == Provenance.UNKNOWN).all()
    np.testing.assert_array_equal(gsply.read_spz(tmp_path / "a.spz").means, again.means)
    write_splats(tmp_path / "a.ply", splats)
    assert (tmp_path / "a.spz").stat().st_size < 0.35 * (tmp_path / "a.ply").stat().st_size


def test_spz_refuses_what_it_cannot_hold(tmp_path):
    pytest.importorskip("gsply")
    splats = random_splats(3)
    far = GaussianSplats(splats.means + np.float32(1e7), *(getattr(splats, n) for n in ARRAYS[1:]), splats.provenance)
    with pytest.raises(SplatFileError, match=r"1e\+07 from the origin"):
        write_splats(tmp_path / "a.spz", far)
    large = GaussianSplats(splats.means, splats.quaternions, splats.scales + 1000, splats.opacities, splats.harmonics,
                           splats.provenance)  # fmt: skip
    with pytest.raises(SplatFileError, match="holds up to 379"):
        write_splats(tmp_path / "a.spz", large)
    assert not (tmp_path / "a.spz").exists()


def test_gltf_is_what_the_extension_asks_for(tmp_path):
    """Read without this package's reader: JSON and bytes alone."""
    splats = random_splats(7)
    write_splats(tmp_path / "a.glb", splats, up=np.array([0.0, 0.0, 1.0]))
    content = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack("<4sII", content[:12]) == (b"glTF", 2, len(content))
    size = struct.unpack("<I", content[12:16])[0]
    document, data = json.loads(content[20 : 20 + size]), content[28 + size :]
    (primitive,) = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"] == {
        "kernel": "ellipse", "colorSpace": "srgb_rec709_display",
    }  # fmt: skip

    def array(name):
        accessor = document["accessors"][primitive["attributes"][name]]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        columns = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        return np.frombuffer(data, "<f4", accessor["count"] * columns, view["byteOffset"]).reshape(-1, columns)

    prefix = "KHR_gaussian_splatting:"
    np.testing.assert_array_equal(array("POSITION"), splats.means)
    np.testing.assert_array_equal(array(prefix + "ROTATION"), splats.quaternions[:, [1, 2, 3, 0]])
    np.testing.assert_array_equal(array(prefix + "SCALE"), splats.scales)
    np.testing.assert_array_equal(array(prefix + "OPACITY")[:, 0], splats.opacities)
    for k, name in enumerate(("0_COEF_0", "1_COEF_0", "1_COEF_1", "1_COEF_2")):
        np.testing.assert_array_equal(array(f"{prefix}SH_DEGREE_{name}"), splats.harmonics[:, k])
    x, y, z, w = document["nodes"][0]["rotation"]  # turns up to y
    up = np.array([0.0, 0.0, 1.0])
    axis = np.array([x, y, z])
    np.testing.assert_allclose(up + 2 * np.cross(axis, np.cross(axis, up) + w * up), [0, 1, 0], atol=1e-12)


def test_a_file_of_splats_is_still_a_cloud_with_provenance(tmp_path):
    splats = random_splats(30, 1)
    write_splats(tmp_path / "a.ply", splats)
    cloud = read_point_cloud(tmp_path / "a.ply")
    shown = splats.opacities >= 0.1
    np.testing.assert_array_equal(cloud.provenance, splats.provenance[shown])
    np.testing.assert_array_equal(cloud.colours, splats.colours[shown])


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".glb", ".gltf"])
def test_truncated_files_are_refused(tmp_path, suffix):
    if suffix == ".spz":
        pytest.importorskip("gsply")
    path = tmp_path / f"a{suffix}"
    write_splats(path, random_splats())
    content = path.read_bytes()
    for size in (0, 3, 40, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(SplatFileError) as error:
            read_splats(path)
        assert str(path) in str(error.value)


def test_an_spz_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    pytest.importorskip("gsply")
    header = struct.pack("<IIIBBBB", 0x5053474E, 3, 10, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + bytes(50_000_000)))
    with pytest.raises(SplatFileError, match="unpacks to more"):
        read_splats(tmp_path / "a.spz")
    header = struct.pack("<IIIBBBB", 0x5053474E, 3, 90_000_000, 0, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(header + bytes(500)))
    with pytest.raises(SplatFileError, match="declares 90,000,000 splats"):
        read_splats(tmp_path / "a.spz")


def test_other_content_is_refused_with_what_is_missing(tmp_path):
    from worldstereo_ros.io.point_cloud_formats import write_columns

    write_columns(tmp_path / "cloud.ply", {axis: np.zeros(4, np.float32) for axis in "xyz"})
    with pytest.raises(SplatFileError, match="no Gaussian splats: it has no f_dc_0"):
        read_splats(tmp_path / "cloud.ply")
    writer = GltfWriter()
    writer.document |= {"nodes": [{"mesh": 0}], "meshes": [{"primitives": [{"attributes": {}}]}]}
    writer.write(tmp_path / "mesh.glb")
    with pytest.raises(SplatFileError, match="0 primitives of Gaussian splats"):
        read_splats(tmp_path / "mesh.glb")
    with pytest.raises(SplatFileError, match=r"suffix '\.obj'"):
        read_splats(tmp_path / "a.obj")
    with pytest.raises(SplatFileError, match="cannot be read"):
        read_splats(tmp_path / "none.ply")
    with pytest.raises(SplatFileError, match="no splats, so"):
        write_splats(tmp_path / "a.ply", random_splats().subset(np.zeros(50, bool)))


def test_a_gltf_that_moves_its_splats_is_refused(tmp_path):
    write_splats(tmp_path / "a.gltf", random_splats())
    document = json.loads((tmp_path / "a.gltf").read_text())
    document["nodes"][0]["translation"] = [1, 2, 3]
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    with pytest.raises(SplatFileError, match="by a transform"):
        read_splats(tmp_path / "a.gltf")


def test_invalid_splats_are_refused():
    good = random_splats(5)
    parts = {name: getattr(good, name) for name in (*ARRAYS, "provenance")}
    for name, value, message in (
        ("means", np.full((5, 3), np.nan), "not finite in splat 0"),
        ("scales", np.zeros((5, 3)), "scale that is not above 0"),
        ("opacities", np.full(5, 1.5), "not all from 0 to 1"),
        ("quaternions", np.zeros((5, 4)), "length 0"),
        ("harmonics", np.zeros((5, 5, 3)), "harmonics have shape"),
        ("provenance", np.full(5, 9), "value 9"),
        ("scales", np.ones((4, 3)), "scales have shape"),
    ):
        with pytest.raises(InputError, match=message):
            GaussianSplats(**{**parts, name: value})
