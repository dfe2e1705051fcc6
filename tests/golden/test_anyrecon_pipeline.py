"""AnyRecon's whole pipeline, its order of frames and its geometry against golden numbers of the reference.

See `test_anyrecon_network.py` for `WORLDSTEREO_GOLDEN_ANYRECON`.
"""

import json
import re

import numpy as np
import pytest
import torch
from helpers.anyrecon import load_transformer, padded_text
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.models.autoencoders.tiling import Tiling
from worldstereo_ros.models.checkpoints.wan_loading import load_wan_autoencoder
from worldstereo_ros.pipelines.anyrecon.pipeline import AnyReconPipeline
from worldstereo_ros.pipelines.anyrecon.published_geometry import (
    align_to_anchor,
    camera_of_focal,
    cover_and_crop,
    depth_edges,
    fit_focal,
    point_map_size,
    smooth_trajectory,
)
from worldstereo_ros.pipelines.anyrecon.published_rendering import paint_published, project_published, render_published
from worldstereo_ros.pipelines.anyrecon.published_retrieval import count_points, published_chunks
from worldstereo_ros.pipelines.anyrecon.sequence import (
    CAPTURE,
    PREVIOUS,
    PREVIOUS_FRAMES,
    build_sequence,
    frame_order,
    published_sparse_frames,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BORDER_PX = 1e-4  # points so close to the border of the picture may fall on either side of it


@pytest.fixture(scope="module")
def manifest(golden_anyrecon):
    return json.loads((golden_anyrecon / "manifest.json").read_text())["files"]


# --- the whole pipeline ---


@pytest.fixture(scope="module")
def example(golden_anyrecon, manifest):
    """The settings, the tensors, the pipeline, and what CLIP was given."""
    file = "pipeline.safetensors"
    settings, io = manifest[file], load_file(golden_anyrecon / file)
    seen = []

    def image_encoder(image):
        seen.append(image)
        return io["clip_features"]

    pipeline = AnyReconPipeline(
        load_transformer(golden_anyrecon),
        load_wan_autoencoder(golden_anyrecon / "vae/model.safetensors"),
        padded_text(io["text"]),
        image_encoder,
        size=(settings["height"], settings["width"]),
        steps=settings["steps"],
        tiling=Tiling(tuple(settings["tile_size"]), tuple(settings["tile_stride"])),
    )
    return settings, io, pipeline, seen


def test_masks_and_condition_latents_match(example):
    settings, io, pipeline, _ = example
    inputs = build_sequence(list(io["frames"].numpy()), list(io["masks"].numpy()), pipeline.size, pipeline.autoencoder)
    assert torch.equal(inputs.visible[0], io["mask_latent"])
    error = (inputs.condition[0] - io["condition_latent"]).abs().max().item()
    assert error <= settings["tolerance"]["latents"]


def test_latents_match(example):
    settings, io, pipeline, seen = example
    inputs = build_sequence(list(io["frames"].numpy()), list(io["masks"].numpy()), pipeline.size, pipeline.autoencoder)
    generator = torch.Generator().manual_seed(settings["seed"])
    velocities = []
    handle = pipeline.transformer.register_forward_hook(lambda module, inputs, output: velocities.append(output[0]))
    try:
        latents = pipeline.denoise_sequence(inputs, generator, lambda *_: None)
    finally:
        handle.remove()
    assert len(velocities) == settings["steps"]
    assert (velocities[0] - io["velocity_first"]).abs().max() <= settings["tolerance"]["latents"]
    assert (latents - io["latent_final"][0]).abs().max() <= settings["tolerance"]["latents"]
    step = torch.finfo(io["clip_picture"].dtype).eps
    assert (seen[-1] - io["clip_picture"][0].float()).abs().max() <= step


def test_video_matches(example):
    settings, io, pipeline, _ = example
    frames, masks = list(io["frames"].numpy()), list(io["masks"].numpy())
    generator = torch.Generator().manual_seed(settings["seed"])
    video = np.stack(list(pipeline.generate(frames, masks, generator=generator)))
    difference = np.abs(video.astype(int) - io["video"].numpy().astype(int))
    assert difference.max() <= settings["tolerance"]["video_grey_levels"]
    targets = settings["captures"] + settings["previous"]
    generator = torch.Generator().manual_seed(settings["seed"])
    only = np.stack(list(pipeline.generate(frames, masks, first=targets, generator=generator)))
    np.testing.assert_array_equal(only, video[targets:])


def test_order_of_frames_matches(golden_anyrecon):
    chunks = json.loads((golden_anyrecon / "frame_order.json").read_text())["chunks"]
    assert chunks
    for number, chunk in enumerate(chunks):
        listed, _, last = chunk["dense"]
        renders = 1 + int(re.fullmatch(r"render(\d+)", last)[1])
        previous = PREVIOUS_FRAMES if number else 0
        order = frame_order(chunk["frames"] - renders - previous, previous, renders)
        labels = {PREVIOUS: f"chunk{number - 1}.output[{{}}]", CAPTURE: "capture{}"}
        names = [labels.get(source.kind, "render{}").format(source.index) for source in order]
        assert len(order) == chunk["frames"]
        assert names[: len(listed)] == listed
        assert names[-1] == last
        masks = ["white" if source.white_mask else f"mask{source.index}" for source in order]
        assert masks[: len(chunk["masks"])] == chunk["masks"]
        assert names[0] == chunk["clip_picture"]
        assert published_sparse_frames(len(order)) == chunk["sparse_frames"]


# --- the published renderer and retrieval ---


@pytest.fixture(scope="module")
def rendering(golden_anyrecon):
    """The tensors, and a camera in this package's conventions and a pose for each picture."""
    tensors = load_numpy(golden_anyrecon / "geometry/render.safetensors")
    height, width = tensors["visible"].shape[1:]
    cameras = []
    for matrix, pose in zip(tensors["intrinsics"], tensors["camera_from_world"], strict=True):
        K = matrix.astype(np.float64)
        K[:2, 2] -= 0.5
        cameras.append((Camera.from_matrix(K, width, height), invert_pose(pose.astype(np.float64))))
    return tensors, cameras


def test_published_renders_match(rendering, manifest):
    tensors, cameras = rendering
    tolerance = manifest["geometry/render.safetensors"]["tolerance"]
    for index, (camera, pose) in enumerate(cameras):
        painted = paint_published(tensors["points"], tensors["colours"], camera, pose)
        different = np.abs(painted.image.astype(int) - tensors["images"][index]).max(axis=-1) > tolerance["grey_levels"]
        assert different.mean() <= tolerance["share_of_pixels_beyond"], index
        wrong = painted.visible != (tensors["visible"][index] > 127)
        assert wrong.sum() <= tolerance["visible_pixels_different"], index


def test_published_renders_have_depth_and_provenance(rendering):
    tensors, cameras = rendering
    camera, pose = cameras[0]
    kinds = np.full(len(tensors["points"]), Provenance.OBSERVED, np.uint8)
    kinds[::2] = Provenance.IMAGINED
    renders = render_published(tensors["points"], tensors["colours"], kinds, camera, pose[None])
    visible = renders.covered[0].numpy()
    np.testing.assert_array_equal(visible, tensors["visible"][0] > 127)
    assert (renders.depth[0].numpy()[visible] > 0).all()
    assert (renders.depth[0].numpy()[~visible] == 0).all()
    assert set(np.unique(renders.provenance[0].numpy()[visible])) <= {Provenance.IMAGINED, Provenance.OBSERVED}
    assert (renders.provenance[0].numpy()[~visible] == Provenance.UNKNOWN).all()


def test_published_counts_match(rendering):
    tensors, cameras = rendering
    points, colours, source = tensors["points"], tensors["colours"], tensors["source"]
    expected = tensors["points_a_source"]
    assert expected.sum() > 0
    for index, (camera, pose) in enumerate(cameras):
        counts = count_points(points, colours, source, camera, pose, sources=expected.shape[1])
        u, v, z, _ = project_published(points.astype(np.float64), colours, camera, pose)
        edge = np.minimum.reduce(
            [np.abs(u + 0.5), np.abs(u - camera.width + 0.5), np.abs(v + 0.5), np.abs(v - camera.height + 0.5)]
        )
        uncertain = np.bincount(source[(edge < BORDER_PX) & (z > 0)].astype(int), minlength=expected.shape[1])
        assert (np.abs(counts - expected[index]) <= uncertain).all(), index


def test_published_retrieval_matches(golden_anyrecon):
    cases = json.loads((golden_anyrecon / "geometry/retrieval.json").read_text())["cases"]
    assert cases
    for case in cases:
        frames = [{int(key): n for key, n in frame.items()} for frame in case["points_a_source_a_frame"]]
        chunks = published_chunks(frames, case["captures"])
        assert len(chunks) == len(case["chunks"])
        for chunk, expected in zip(chunks, case["chunks"], strict=True):
            assert (chunk.first, chunk.end) == (expected["first"], expected["end"])
            assert chunk.captures == expected["captures"]
            assert chunk.sums == {int(key): n for key, n in expected["sums"].items()}


# --- point maps and trajectories ---


def test_focal_lengths_and_depth_edges_match(golden_anyrecon, manifest):
    tensors = load_numpy(golden_anyrecon / "geometry/pointmaps.safetensors")
    tolerance = manifest["geometry/pointmaps.safetensors"]["tolerance"]
    names = ("local_points", "usable", "focal", "intrinsics", "edge")
    for points, usable, focal, matrix, edge in zip(*(tensors[name][0] for name in names), strict=True):
        height, width = usable.shape
        found, _ = fit_focal(points, usable)
        assert abs(found - focal) <= tolerance["focal"]
        camera = camera_of_focal(found, width, height)
        # The centre of the published matrix counts from the corner of the picture.
        corner = camera.matrix + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        np.testing.assert_allclose(corner, matrix, rtol=tolerance["focal"], atol=1e-6)
        assert (depth_edges(points[..., 2]) != edge).sum() <= tolerance["edge_pixels_different"]


def test_trajectories_match(golden_anyrecon, manifest):
    tensors = load_numpy(golden_anyrecon / "geometry/trajectory.safetensors")
    tolerance = manifest["geometry/trajectory.safetensors"]["tolerance"]
    poses, anchor = tensors["world_from_camera"], tensors["anchor"]
    np.testing.assert_allclose(smooth_trajectory(poses), tensors["smoothed"], atol=tolerance)
    aligned = invert_pose(align_to_anchor(poses, anchor))
    np.testing.assert_allclose(aligned, tensors["aligned_camera_from_world"], atol=tolerance)
    camera_from_world = invert_pose(poses)  # as a file of this convention has them
    aligned = invert_pose(align_to_anchor(invert_pose(camera_from_world), anchor))
    np.testing.assert_allclose(aligned, tensors["aligned_from_w2c"], atol=tolerance)


def test_crops_and_sizes_match(golden_anyrecon, manifest):
    tensors = load_numpy(golden_anyrecon / "geometry/crop.safetensors")
    crops = [match for name in tensors if (match := re.fullmatch(r"(.+)_to_(\d+)x(\d+)", name))]
    assert crops
    for match in crops:
        np.testing.assert_array_equal(
            cover_and_crop(tensors[match[1]], int(match[2]), int(match[3])), tensors[match[0]]
        )
    sizes = manifest["geometry/crop.safetensors"]["sizes"]
    assert sizes
    for name, expected in sizes.items():
        width, height = (int(side) for side in name.split("x"))
        assert point_map_size(width, height) == tuple(expected), name
