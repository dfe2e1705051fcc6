"""A published-layout checkpoint of toy size from end to end: through the loop, the command line and bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import CAMERA as CAMERA_VARIANT
from checkpoints import DMD_VARIANT, MEMORY, change_config, edit, write_checkpoint
from typer.testing import CliRunner

from worldstereo_ros.camera import Camera, plucker_embedding, trajectory
from worldstereo_ros.cli import app
from worldstereo_ros.models import VARIANTS, CheckpointError
from worldstereo_ros.pipelines.base import Cancelled, Conditioning, ModelError
from worldstereo_ros.pipelines.conditioning import attach_references, fit_renders, make_keyframes, published_matrix
from worldstereo_ros.pipelines.load import load_pipeline, split_variant
from worldstereo_ros.pipelines.worldstereo import compose
from worldstereo_ros.rendering import render
from worldstereo_ros.views import View
from worldstereo_ros.world import WorldModel

CAMERA = Camera.from_fov(60, 45, np.radians(70))
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors of toy size are slower on many, above all where others use them too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder with all three variants and their base."""
    root = tmp_path_factory.mktemp("checkpoints")
    for index, variant in enumerate(VARIANTS):
        write_checkpoint(root, variant, encoders=index == 0)
    # One variant each of the two ways to tell the model its first frame.
    change_config(root / MEMORY, latent_cond_mode="first_frame_only")
    return root


@pytest.fixture(scope="session")
def loaded(checkpoints):
    """Variant to pipeline; loaded once, and four steps where there would be forty."""
    pipelines = {}
    for variant in VARIANTS:
        pipelines[variant] = load_pipeline(str(checkpoints), variant=variant)
        pipelines[variant].steps = 4
    return pipelines


@pytest.fixture
def pipeline(loaded):
    """The distilled variant, as it is loaded."""
    pipeline = loaded[DMD_VARIANT]
    yield pipeline
    pipeline.steps, pipeline.compose_observed, pipeline.callback_on_step_end = 4, True, None
    pipeline.fill_clip = False


def seed_view(stamp: int = 1, sideways: float = 0.0) -> View:
    """A wall of coloured squares 2 m ahead."""
    image = np.random.default_rng(3).integers(30, 220, (9, 12, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    pose = np.eye(4)
    pose[0, 3] = sideways
    return View(image, CAMERA, pose, np.full((45, 60), 2.0, np.float32), stamp_ns=stamp)


def make_world(pipeline) -> WorldModel:
    world = WorldModel(pipeline)
    world.seed(seed_view(1))
    world.seed(seed_view(2, 0.2))
    return world


def away(count: int) -> np.ndarray:
    """A path that turns away from what was seen."""
    return trajectory("turn", np.eye(4), count, angle=2.0)


def difference(one, other) -> float:
    return max(float(np.abs(a.image.astype(int) - b.image).max()) for a, b in zip(one, other, strict=True))


# --- through the loop ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_imagines_a_path(loaded, variant):
    world = make_world(loaded[variant])
    seen = []
    views = list(world.imagine(away(4), CAMERA, prompt="a hall", on_step=lambda *step: seen.append(step)))
    assert loaded[variant].name == variant
    assert [view.image.shape for view in views] == [(45, 60, 3)] * 4
    assert [step for stage, step, _ in seen if stage == "denoising"] == [0, 1, 2, 3]
    assert [step for stage, step, _ in seen if stage == "decoding"] == [0, 1, 2, 3]
    assert views[0].observed_fraction > 0.8
    assert views[-1].observed_fraction < 0.05
    for view in views:
        assert view.observed.all() or view.image[~view.observed].std() > 1
        assert not (view.observed & ~view.covered).any()
        assert (view.depth > 0).all() == view.covered.any()  # filled from what is known, unknown where nothing is


def test_steps_and_guidance_are_those_of_the_variant(checkpoints, loaded):
    assert loaded[DMD_VARIANT].guidance == 1.0
    assert loaded[CAMERA_VARIANT].guidance == 5.0
    fresh = load_pipeline(str(checkpoints), variant="camera")
    steps = []

    def stop_at_first(stage, step, count):
        steps.append(count)
        if stage == "denoising":
            raise Cancelled

    world = make_world(fresh)
    with pytest.raises(Cancelled):
        list(world.imagine(away(1), CAMERA, on_step=stop_at_first))
    assert steps[-1] == 40


def test_frames_come_as_they_are_decoded(pipeline):
    stages = []
    frames = make_world(pipeline).imagine(away(4), CAMERA, on_step=lambda stage, *_: stages.append(stage))
    next(frames)
    assert stages.count("decoding") == 1
    next(frames)
    assert stages.count("decoding") == 2


def test_long_path_goes_in_clips_that_begin_where_the_last_ended(pipeline):
    world = make_world(pipeline)
    seeds, original = [], type(pipeline).__call__

    class Spy:
        name, clip_length, selects_references = pipeline.name, pipeline.clip_length, True

        def __call__(self, conditioning, **arguments):
            seeds.append(conditioning.seed)
            return original(pipeline, conditioning, **arguments)

    world.pipeline = Spy()
    views = list(world.imagine(away(10), CAMERA, remember=True))
    assert [view.index for view in views] == list(range(10))
    assert pipeline.clip_length == 4
    assert len(seeds) == 3
    assert seeds[0].observed is None
    assert seeds[1] is views[3]
    assert seeds[2] is views[7]
    assert not world.cloud.observed.all()


def test_same_seed_same_views_and_another_another(pipeline):
    world = make_world(pipeline)
    one, two, other = (list(world.imagine(away(3), CAMERA, seed=seed)) for seed in (5, 5, 6))
    assert difference(one, two) == 0
    assert difference(one, other) > 0


def test_prompt_is_encoded_once_and_matters(pipeline):
    text, world = pipeline.text_encoder, make_world(pipeline)
    before = text.encoded
    one = list(world.imagine(away(2), CAMERA, prompt="a red kitchen"))
    assert text.encoded == before + 1
    list(world.imagine(away(2), CAMERA, prompt=" a red  kitchen "))
    assert text.encoded == before + 1
    other = list(world.imagine(away(2), CAMERA, prompt="A forest, 3 o'clock"))
    assert text.encoded == before + 2
    assert difference(one, other) > 0
    embedding = text("a red kitchen")
    assert embedding.shape[:2] == (1, 512)
    used = int((embedding[0].abs().sum(-1) > 0).sum())
    assert 5 < used < 30
    assert not embedding[0, used:].any()


@pytest.mark.parametrize(("stage", "step"), [("denoising", 2), ("decoding", 1)])
def test_cancelling_leaves_memory_as_it_was_and_the_next_goal_runs(pipeline, stage, step):
    world = make_world(pipeline)
    before = {name: array.copy() for name, array in world.cloud.state().items()}

    def stop(at, number, _count):
        if (at, number) == (stage, step):
            raise Cancelled

    with pytest.raises(Cancelled):
        list(world.imagine(away(3), CAMERA, remember=True, on_step=stop))
    for name, array in world.cloud.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert len(world.bank) == 2
    fresh = list(make_world(pipeline).imagine(away(3), CAMERA))
    assert difference(list(world.imagine(away(3), CAMERA)), fresh) == 0


def test_callback_may_replace_the_latents(pipeline):
    world, steps = make_world(pipeline), []

    def grey(owner, step, timestep, tensors):
        assert owner is pipeline
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    plain = list(world.imagine(away(3), CAMERA))
    pipeline.callback_on_step_end = grey
    changed = list(world.imagine(away(3), CAMERA))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert steps[0][1] == 1000
    assert difference(plain, changed) > 0


def test_references_reach_the_memory_variants_alone(loaded):
    for variant in (MEMORY, CAMERA_VARIANT):
        given, pipeline = [], loaded[variant]
        watch = pipeline.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs, given=given: given.append(kwargs), with_kwargs=True
        )
        try:
            list(make_world(pipeline).imagine(away(3), CAMERA))
        finally:
            watch.remove()
        references = given[0].get("reference_latent")
        if variant == CAMERA_VARIANT:
            assert references is None
            assert "camera_qt" not in given[0]
        else:
            assert references.shape[:2] == (1, 36)
            assert torch.equal(references[:, :16], references[:, 20:])
            assert (references[:, 16:20] == 1).all()
            assert len(given[0]["ref_index"]) == references.shape[2] <= 8
        assert len(given) == 8  # four steps with and without the prompt


def test_without_composing_nothing_is_called_observed(pipeline):
    world = make_world(pipeline)
    pipeline.compose_observed = False
    views = list(world.imagine(away(2), CAMERA))
    assert not any(view.observed.any() for view in views)
    assert (views[0].depth > 0).all()


def test_filling_the_clip_gives_as_many_views_as_were_asked(pipeline):
    shapes = []
    watch = pipeline.transformer.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].shape))
    try:
        list(make_world(pipeline).imagine(away(2), CAMERA))
        pipeline.fill_clip = True
        views = list(make_world(pipeline).imagine(away(2), CAMERA))
    finally:
        watch.remove()
    assert len(views) == 2
    assert (shapes[0][2], shapes[-1][2]) == (3, 5)


@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_other_receptive_fields(checkpoints, mode):
    pipeline = load_pipeline(str(checkpoints), variant="memory-dmd", reference_attention=mode)
    views = list(make_world(pipeline).imagine(away(2), CAMERA))
    full = load_pipeline(str(checkpoints), variant="memory-dmd")
    assert difference(views, list(make_world(full).imagine(away(2), CAMERA))) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_single(checkpoints, pipeline, dtype):
    pipeline.compose_observed = False
    half = load_pipeline(str(checkpoints), dtype=dtype, compose_observed=False)
    assert half.transformer.dtype == getattr(torch, dtype)
    one = next(iter(make_world(pipeline).imagine(away(1), CAMERA)))
    two = next(iter(make_world(half).imagine(away(1), CAMERA)))
    assert np.abs(one.image.astype(float) - two.image).mean() < 4


# --- what the model is given ---


def test_seed_is_the_first_keyframe_and_holes_are_grey():
    view = seed_view()
    poses = away(3)
    rendering = render(
        np.array([[0.0, 0.0, 2.0]], np.float32),
        np.array([[250, 10, 10]], np.uint8),
        np.ones(1, bool),
        np.full(1, 0.4, np.float32),
        CAMERA,
        poses,
    )
    conditioning = Conditioning(view, rendering, CAMERA, poses, [view], np.array([-1, 0, 0]))
    keyframes = make_keyframes(conditioning, (64, 96), CPU)
    assert keyframes.pictures.shape == (4, 3, 64, 96)
    assert keyframes.holes.shape == (1, 1, 4, 64, 96)
    assert keyframes.holes[0, 0, 0].sum() == 0
    seed = view.resized(96, 64).image
    np.testing.assert_allclose(keyframes.pictures[0].permute(1, 2, 0), seed / 127.5 - 1, atol=1e-6)
    hole = keyframes.holes[0, 0, 1] > 0
    assert 0.5 < hole.float().mean() < 1
    assert not keyframes.pictures[1][:, hole].any()
    covered = keyframes.pictures[1][:, ~hole]
    np.testing.assert_allclose(covered[0], 250 / 127.5 - 1, atol=1e-5)  # no grey of the holes in it
    assert keyframes.reference_index.tolist() == [1]  # of views 1 and 2 the one it is nearer to
    assert keyframes.poses.shape == (1, 4, 7)
    np.testing.assert_allclose(keyframes.poses[0, :2, :4], [[1, 0, 0, 0]] * 2, atol=1e-6)  # a turn begins where it is
    np.testing.assert_allclose(keyframes.reference_poses, keyframes.poses[:, :1], atol=1e-6)


def test_intrinsics_follow_the_picture_and_the_published_pixel_grid():
    camera = Camera(60, 45, 40.0, 40.0, 29.5, 22.0)
    matrix = published_matrix(camera.resized(96, 64))
    np.testing.assert_allclose(matrix, [[64.0, 0, 48], [0, 40 * 64 / 45, 32], [0, 0, 1]])
    # The ray through the middle of the published picture, between its four middle pixels, looks straight ahead.
    rays = plucker_embedding(np.eye(4)[None], matrix, 64, 96)[:3, 0]
    np.testing.assert_allclose(rays[:, 31:33, 48:50].mean(axis=(1, 2)), [0.0, 0.0, 1.0], atol=2e-2)


def test_mask_of_a_smaller_picture_is_what_most_of_it_is():
    covered = torch.zeros(1, 8, 8, dtype=torch.bool)
    covered[:, :, :4] = True
    colour = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    colour[:, :, :4] = 255
    pictures, holes = fit_renders(colour, covered, (4, 4))
    assert holes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 4
    np.testing.assert_allclose(pictures[0, :, :, :2], 1.0, atol=1e-6)
    assert not pictures[0, :, :, 2:].any()


def test_a_reference_stands_beside_the_view_it_serves_best():
    views = [seed_view(), seed_view(2, 0.5)]
    poses = trajectory("right", np.eye(4), 3, distance=0.5)
    conditioning = Conditioning(views[0], None, CAMERA, poses, [*views, seed_view(3, 9.0)], np.array([0, 1, 1]))
    chosen, beside = attach_references(conditioning)
    assert [view.stamp_ns for view in chosen] == [1, 2]
    assert beside == [0, 2]
    none = replace(conditioning, reference_index=np.full(3, -1))
    assert attach_references(none) == ([], [])


def test_condition_of_a_video_differs_from_that_of_single_frames(loaded):
    def condition_of(variant):
        hidden = []
        pipeline = loaded[variant]
        watch = pipeline.transformer.register_forward_pre_hook(lambda _m, args: hidden.append(args[0]))
        try:
            list(make_world(pipeline).imagine(away(4), CAMERA))
        finally:
            watch.remove()
        return hidden[0][0, 16:]

    video, single = condition_of(DMD_VARIANT), condition_of(MEMORY)
    for condition in (video, single):
        assert (condition[:4, 0] == 1).all()
        assert not condition[:4, 1:].any()
    # One frame at a time, all grey ones are the same; in a video they remember the picture before them.
    assert torch.equal(single[4:, 1], single[4:, 4])
    assert (video[4:, 1] - video[4:, 4]).abs().max() > 1e-3
    np.testing.assert_allclose(video[4:, 0], single[4:, 0], atol=1e-4)


def test_seam_lies_outside_of_what_was_observed():
    from worldstereo_ros.pipelines.base import PipelineFrame

    observed = np.zeros((20, 60), bool)
    observed[:, :20] = True
    remembered = PipelineFrame(np.full((20, 60, 3), 200, np.uint8), np.ones((20, 60), np.float32), observed)
    frame = compose(remembered, np.full((20, 60, 3), 100, np.uint8))
    assert (frame.image[observed] == 200).all()
    row = frame.image[10, 20:, 0].astype(int)
    # What the model is off by is carried over, and fades with distance.
    assert (np.diff(row) <= 0).all()
    assert row[0] > 150
    assert row[-1] < row[0]
    assert (frame.observed == observed).all()


# --- what can go wrong ---


def test_numbers_that_are_not_finite_are_an_error(pipeline):
    world = make_world(pipeline)
    pipeline.callback_on_step_end = lambda _p, step, _t, tensors: {"latents": tensors["latents"] * float("nan")}
    with pytest.raises(ModelError, match=r"not finite in step 2 of 4; it runs in float32"):
        list(world.imagine(away(1), CAMERA))


def test_too_little_memory_is_a_sentence_with_what_was_needed(pipeline):
    world = make_world(pipeline)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.\nmore")

    pipeline.callback_on_step_end = full
    with pytest.raises(ModelError, match=r"4 keyframes of 96x64 with \d references.*Tried to allocate 12") as caught:
        list(world.imagine(away(3), CAMERA))
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None  # it would keep the tensors
    pipeline.callback_on_step_end = None
    assert len(list(world.imagine(away(3), CAMERA))) == 3


def truncate(root):
    file = root / DMD_VARIANT / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def poison(root):
    def change(tensors):
        name = next(name for name in tensors if name.startswith("blocks.0.attn1"))
        tensors[name][...] = float("nan")

    edit(root / DMD_VARIANT / "model.safetensors", change)


def other_variant(root):
    change_config(root / DMD_VARIANT, dmd_steps=None)


def truncate_text(root):
    file = root / "base" / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_text_tensor(root):
    edit(root / "base" / "text_encoder" / "model.safetensors", lambda t: t.pop(sorted(t)[0]))


def drop(*parts):
    def remove(root):
        folder = root.joinpath("base", *parts)
        folder.rename(folder.with_name("gone"))

    return remove


def spoil_tokenizer(root):
    for file in (root / "base" / "tokenizer").iterdir():
        file.write_text("{")


def pickled_text(root):
    folder = root / "base" / "text_encoder"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (truncate, "model.safetensors"),
        (poison, "not finite"),
        (other_variant, "worldstereo-memory-dmd was asked for"),
        (truncate_text, "text_encoder"),
        (drop_text_tensor, "text_encoder lacks 1 tensor"),
        (pickled_text, "text_encoder"),
        (drop("image_encoder"), "no image_encoder"),
        (drop("tokenizer"), "no tokenizer"),
        (drop("vae"), "vae"),
        (spoil_tokenizer, "tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_checkpoints_get_a_sentence(checkpoints, tmp_path, harm, sentence):
    import shutil

    root = tmp_path / "model"
    shutil.copytree(checkpoints, root)
    harm(root)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_pipeline(str(root), variant="memory-dmd")
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": "geometricc"}, "'geometricc' is not known"),
        ({"model": "no/such folder"}, "neither|no model"),
        ({"model": ".", "dtype": "int8"}, "'int8' is not known"),
        ({"model": "a/b:memory", "variant": "camera"}, "camera was asked for"),
        ({"model": ".", "variant": "video"}, "'video' is not known"),
    ],
)
def test_names_that_mean_nothing(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_pipeline(**arguments)


def test_variant_behind_a_name(tmp_path):
    assert split_variant("owner/name:memory") == ("owner/name", "memory")
    assert split_variant("owner/name", "camera") == ("owner/name", "camera")
    odd = tmp_path / "a:memory"
    odd.mkdir()
    assert split_variant(str(odd)) == (str(odd), "")


# --- the command line ---


def write_source(root):
    """A posed sequence of one frame in the layout of the example data."""
    import cv2

    view = seed_view()
    (root / "frames").mkdir(parents=True)
    (root / "depth").mkdir()
    cv2.imwrite(str(root / "frames" / "000000.png"), view.image[..., ::-1])
    cv2.imwrite(str(root / "depth" / "000000.png"), (view.depth * 1000).astype(np.uint16))
    K = {name: getattr(CAMERA, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    (root / "intrinsics.json").write_text(json.dumps({**K, "depth_scale": 1000.0}))
    (root / "poses.txt").write_text("0 0 0 0 0 0 0 1\n")
    return root


def test_imagine_and_inspect_on_the_command_line(checkpoints, tmp_path):
    source = write_source(tmp_path / "scene")
    out = tmp_path / "out"
    arguments = ["imagine", str(source), "--model", str(checkpoints), "--variant", "memory-dmd", "--views", "5"]
    result = CliRunner().invoke(app, [*arguments, "--path", "turn", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert (out / "contact_sheet.png").stat().st_size > 1000

    result = CliRunner().invoke(app, ["inspect", str(checkpoints)])
    assert result.exit_code == 0, result.output
    for variant in VARIANTS:
        assert variant in result.output
    assert "memory needed" in result.output
    result = CliRunner().invoke(app, ["inspect", f"{checkpoints}:camera"])
    assert DMD_VARIANT not in result.output
    assert CAMERA_VARIANT in result.output


def test_inspect_fails_where_the_checkpoint_cannot_be_loaded(tmp_path):
    write_checkpoint(tmp_path, CAMERA_VARIANT, autoencoder=False)
    edit(tmp_path / CAMERA_VARIANT / "model.safetensors", lambda t: t.pop("controlnet.proj_in.weight"))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert "controlnet.proj_in.weight" in result.output
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "nothing" in result.output
