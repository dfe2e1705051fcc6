"""The transformer: branches, attention masks, equality with diffusers, and rejected inputs."""

import subprocess
import sys

import pytest
import torch
from helpers.checkpoints import BACKBONE, CONTROL, tiny_inputs, tiny_transformer

from worldstereo_ros.models.worldstereo.attention import attend_groups
from worldstereo_ros.models.worldstereo.correspondence import reference_points
from worldstereo_ros.models.worldstereo.masks import (
    Correspondence,
    TokenGrid,
    additive_mask,
    dense_mask,
    make_mask_mod,
    plan_groups,
)
from worldstereo_ros.models.worldstereo.transformer import WorldStereoTransformer


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random_points(batch, frames, rows, columns, references, seed=3):
    """Projections of which some are unknown (NaN) and some are not visible (infinity)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, frames, rows, columns, references, 2, generator=generator)
    points = points * torch.tensor([rows + 2.0, columns + 2.0]) - 1.5
    kind = torch.rand(batch, frames, rows, columns, 1, 1, generator=generator)
    points = torch.where(kind < 0.2, torch.nan, points)
    return torch.where((kind >= 0.2) & (kind < 0.4), torch.inf, points)


# --- attention masks ---


@pytest.mark.parametrize(("update", "batch"), [(True, 1), (False, 2)], ids=["updated", "frozen"])
@pytest.mark.parametrize(
    ("mode", "implementation"),
    [
        ("full", "auto"),
        ("paired", "groups"),
        ("paired", "flex"),
        ("correspondence", "groups"),
        ("correspondence", "flex"),
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_fast_attention_equals_dense_mask(mode, implementation, update, batch):
    # Flex needs heads of at least 16 channels; two references share a keyframe and are not adjacent.
    model = tiny_transformer(control={**CONTROL, "update_ref": update})
    inputs = tiny_inputs(model, batch=batch, ref_index=(1, 0, 1))
    if mode == "correspondence":
        inputs["reference_points"] = random_points(batch, 4, 2, 3, 3)
        model.register_to_config(correspondence_radius=0.8, correspondence_stride=2)
    model.set_reference_attention(mode, "dense")
    slow = model(**inputs).sample
    model.set_reference_attention(mode, implementation)
    fast = model(**inputs).sample
    assert (fast - slow).abs().max() <= 1e-5
    if mode != "full":
        model.set_reference_attention("full")
        assert (model(**inputs).sample - slow).abs().max() > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_compiled_flex_equals_dense_mask_on_the_gpu(mode):
    model = tiny_transformer(attention_head_dim=32, added_kv_proj_dim=64, control=None).cuda()
    inputs = {k: v.cuda() for k, v in tiny_inputs(model).items()}
    inputs["reference_points"] = random_points(1, 4, 2, 3, 3).cuda()
    model.set_reference_attention(mode, "dense")
    slow = model(**inputs).sample
    model.set_reference_attention(mode, "flex")
    assert (model(**inputs).sample - slow).abs().max() <= 1e-3


def frames_that_attend(mode, points=None, ref_index=(1, 0, 1)):
    """For each reference, the (keyframe, row, column) whose output changes with it, in one block."""
    model = tiny_transformer(num_layers=1, control=None, reference_attention=mode)
    inputs = tiny_inputs(model, ref_index=ref_index)
    if points is not None:
        inputs["reference_points"] = points
    before = model(**inputs).sample
    changed = []
    for r in range(len(ref_index)):
        other = inputs["reference_latent"].clone()
        other[:, :, r] += 1
        difference = (model(**{**inputs, "reference_latent": other}).sample - before).abs().amax(dim=(0, 1))
        changed.append(difference.unflatten(1, (2, 2)).unflatten(3, (3, 2)).amax(dim=(2, 4)) > 1e-6)
    return changed


def test_paired_keyframes_attend_to_their_own_reference_only():
    for r, changed in enumerate(frames_that_attend("paired")):
        frames = changed.flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert frames == [(2, 1, 2)[r]]


def test_full_attends_to_everything():
    assert all(changed.all() for changed in frames_that_attend("full"))


def test_correspondence_attends_around_the_projection():
    points = torch.full((1, 4, 2, 3, 3, 2), torch.inf)
    points[0, 1, 0, 2, 0] = torch.tensor([0.0, 1.0])  # token (1, 0, 2) projects into reference 0
    points[0, 3, 1, 1, 2] = torch.nan  # token (3, 1, 1) has no point in reference 2: coarse
    points[0, 2, 0, 0, 1] = torch.tensor([40.0, 40.0])  # far outside reference 1
    model = tiny_transformer(num_layers=1, control=None)
    stride = model.config.correspondence_stride
    assert stride // 2 >= 2, "at this size the default coarse grid has no token; the test must use a finer one"
    changed = frames_that_attend("correspondence", points)
    assert changed[0].nonzero().tolist() == [[1, 0, 2]]
    assert not changed[1].any()
    assert not changed[2].any()


def test_unknown_points_attend_to_the_coarse_grid():
    grid = TokenGrid(frames=2, rows=6, columns=6, reference_frames=(1,))
    points = torch.full((1, 2, 6, 6, 1, 2), torch.nan)
    mask = dense_mask(grid, Correspondence(points, stride=4), torch.device("cpu"))
    seen = mask[0, grid.num_reference_tokens, : grid.num_reference_tokens].nonzero().flatten().tolist()
    assert seen == [2 * 6 + 2]


@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_mask_mod_equals_dense_mask(mode):
    grid = TokenGrid(frames=3, rows=4, columns=5, reference_frames=(2, 1, 2))
    correspondence = Correspondence(random_points(2, 3, 4, 5, 3), radius=1, stride=2)
    correspondence = correspondence if mode == "correspondence" else None
    mask = dense_mask(grid, correspondence, torch.device("cpu"))
    mask_mod = make_mask_mod(grid, correspondence, 0, torch.device("cpu"))
    at = torch.arange(grid.num_tokens)
    batch = torch.arange(mask.shape[0]).view(-1, 1, 1)
    torch.testing.assert_close(mask_mod(batch, None, at[:, None], at[None]).expand(mask.shape), mask)


@pytest.mark.parametrize("min_queries", [1, 50, 512])
@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_groups_of_any_size_equal_dense_mask(mode, min_queries):
    grid = TokenGrid(frames=5, rows=4, columns=5, reference_frames=(2, 1, 2))
    correspondence = Correspondence(random_points(2, 5, 4, 5, 3), radius=1, stride=2)
    correspondence = correspondence if mode == "correspondence" else None
    q, k, v = torch.randn(3, 2, grid.num_tokens, 2, 8, generator=torch.Generator().manual_seed(0))
    groups = [(group, additive_mask(group, q.dtype)) for group in plan_groups(grid, correspondence, min_queries)]
    fast = attend_groups(groups, 0, q, k, v)
    mask = dense_mask(grid, correspondence, torch.device("cpu"))[:, None]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    slow = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    assert (fast - slow).abs().max() <= 1e-5


def test_groups_leave_out_unused_keys():
    grid = TokenGrid(frames=4, rows=2, columns=3, reference_frames=(1, 2))
    points = torch.full((1, 4, 2, 3, 2, 2), torch.inf)
    points[0, 2, ..., 0, :] = 0.0
    groups = plan_groups(grid, Correspondence(points, radius=0.5), min_queries=1)
    targets = [g for g in groups if g.queries.start >= grid.num_reference_tokens]
    keys = [0 if g.references is None else len(g.references) for g in targets]
    assert keys == [0, 1, 0]  # frames 0 and 1 together, frame 2 with the one token, frame 3


# --- reference points ---


def flat_scene(depth=2.0):
    K = torch.tensor([[32.0, 0, 15.5], [0, 32.0, 15.5], [0, 0, 1]])
    return torch.full((1, 32, 32), depth), K, torch.eye(4)[None]


def test_reference_points_of_the_same_camera_are_the_tokens():
    depth, K, pose = flat_scene()
    points = reference_points(depth, K, pose, K, pose, 4, 4)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    torch.testing.assert_close(points[0, :, :, 0], torch.stack((rows, columns), dim=-1), atol=1e-4, rtol=0)


def test_reference_points_move_with_the_reference():
    depth, K, pose = flat_scene(depth=2.0)
    right = pose.clone()
    right[0, 0, 3] = 0.5  # 0.5 m to the right at 2 m is 8 pixels, one token
    points = reference_points(depth, K, pose, K, right, 4, 4)
    assert points[0, 2, 3, 0].tolist() == pytest.approx([2, 2], abs=1e-4)


def test_reference_points_unknown_behind_or_occluded():
    depth, K, pose = flat_scene(depth=2.0)
    depth[0, :8, :8] = 0
    ahead = pose.clone()
    ahead[0, 2, 3] = 3.0  # the reference is behind the wall and looks away from it
    assert reference_points(depth, K, pose, K, ahead, 4, 4)[0, 0, 0].isnan().all()
    assert reference_points(depth, K, pose, K, ahead, 4, 4)[0, 1, 1].isinf().all()
    nearer = torch.zeros(1, 32, 32)
    nearer[:, :, 16:] = 1.0
    hidden = reference_points(depth, K, pose, K, pose, 4, 4, reference_depth=nearer)
    assert hidden[0, 1, 3].isinf().all()
    assert hidden[0, 1, 1].isfinite().all()


def test_correspondence_from_depth():
    """From depth to attention: a reference at the same pose has an effect, one that looks away has none."""
    model = tiny_transformer(num_layers=1, control=None, reference_attention="correspondence")
    inputs = tiny_inputs(model, ref_index=(0, 1))
    K = torch.tensor([[32.0, 0, 23.5], [0, 32.0, 15.5], [0, 0, 1]])
    pose = torch.eye(4).repeat(4, 1, 1)
    references = torch.stack((torch.eye(4), torch.diag(torch.tensor([-1.0, 1, -1, 1]))))
    inputs["reference_points"] = reference_points(torch.full((4, 32, 48), 3.0), K, pose, K, references, 2, 3)[None]
    before = model(**inputs).sample
    for r, changes in ((0, True), (1, False)):
        other = inputs["reference_latent"].clone()
        other[:, :, r] += 1
        after = model(**{**inputs, "reference_latent": other}).sample
        assert ((after - before).abs().max() > 1e-6) == changes


# --- branches ---


def test_without_branches_equals_wan_transformer():
    from diffusers import WanTransformer3DModel

    model = tiny_transformer(control=None)
    wan = WanTransformer3DModel(**BACKBONE).eval()
    wan.load_state_dict(model.state_dict())
    inputs = tiny_inputs(model, ref_index=())
    torch.testing.assert_close(model(**inputs).sample, wan(**inputs).sample, atol=1e-5, rtol=1e-5)


def test_untrained_branches_have_no_effect():
    model = WorldStereoTransformer(**BACKBONE, controlnet_cfg=CONTROL).eval()
    model.init_control_from_backbone()
    inputs = tiny_inputs(model)
    before = model(**inputs).sample
    for name in ("render_latent", "render_mask", "camera_embedding", "camera_qt"):
        after = model(**{**inputs, name: torch.randn_like(inputs[name])}).sample
        torch.testing.assert_close(after, before, msg=lambda text, name=name: f"{name}: {text}")


def test_every_input_has_an_effect_once_trained():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    before = model(**inputs).sample
    others = tiny_inputs(model, seed=2, ref_index=(2, 0, 1)) | {"timestep": torch.tensor([250.0])}
    for name, other in others.items():
        assert (model(**{**inputs, name: other}).sample - before).abs().max() > 1e-5, name


def test_empty_references_equal_no_references():
    model = tiny_transformer()
    inputs = tiny_inputs(model, ref_index=())
    empty = {"reference_latent": torch.zeros(1, 36, 0, 4, 6), "ref_index": torch.zeros(0, dtype=torch.long)}
    torch.testing.assert_close(model(**inputs).sample, model(**inputs, **empty).sample)


def test_batch_equals_singles():
    model = tiny_transformer()
    inputs = tiny_inputs(model, batch=2)
    together = model(**inputs).sample
    for b in range(2):
        single = {k: v if k == "ref_index" else v[b : b + 1] for k, v in inputs.items()}
        torch.testing.assert_close(model(**single).sample[0], together[b], atol=1e-5, rtol=1e-4)


def test_video_latents_are_padded_in_front():
    """Weights for four video frames a latent: three zero frames before the first, then kernels of four."""
    model = tiny_transformer(control={**CONTROL, "mask_downsample": 4})
    inputs = tiny_inputs(model, frames=3)
    for name in ("render_mask", "camera_embedding"):
        inputs[name] = torch.randn(1, inputs[name].shape[1], 9, 32, 48)
    assert model(**inputs).sample.isfinite().all()
    with pytest.raises(ValueError, match="has 18 tokens, but mask and cameras have 6"):
        model(**{**inputs, **{n: inputs[n][:, :, :3] for n in ("render_mask", "camera_embedding")}})


# --- precision, gradients, saving ---


def test_bfloat16_is_close_to_float32():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    expected = model(**inputs).sample
    half = torch.nn.Module.to(model, torch.bfloat16)
    sample = half(**inputs).sample
    assert sample.dtype == torch.bfloat16
    assert (sample.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_fused_projections_have_no_effect():
    model = tiny_transformer(control={**CONTROL, "update_ref": False})
    inputs = tiny_inputs(model)
    expected = model(**inputs).sample
    model.fuse_qkv_projections()
    assert model.blocks[0].attn1.fused_projections
    torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_transformer().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.controlnet.gradient_checkpointing
        with torch.enable_grad():
            model(**tiny_inputs(model)).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    lost = [name for name, gradient in gradients[0].items() if gradient is None]
    assert not lost
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("mode", ["paired", "correspondence"])
def test_gradients_pass_through_groups(mode):
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    inputs["reference_points"] = random_points(1, 4, 2, 3, 3)
    gradients = []
    for implementation in ("dense", "groups"):
        model.set_reference_attention(mode, implementation)
        model.zero_grad()
        with torch.enable_grad():
            model(**inputs).sample.square().mean().backward()
        gradients.append(model.patch_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_save_pretrained_round_trip(tmp_path):
    model = tiny_transformer(reference_attention="paired")
    model.save_pretrained(tmp_path)
    again = WorldStereoTransformer.from_pretrained(tmp_path)
    assert again.config.reference_attention == "paired"
    inputs = tiny_inputs(model)
    torch.testing.assert_close(again(**inputs).sample, model(**inputs).sample)


def test_models_import_without_optional_packages():
    """Torch, diffusers, numpy and safetensors are enough, for each module of the package."""
    code = (
        "import sys\n"
        "for name in ('rclpy', 'open3d', 'cv2', 'scipy', 'numba', 'transformers', 'accelerate', 'peft'):\n"
        "    sys.modules[name] = None\n"
        "import importlib, pkgutil\n"
        "import worldstereo_ros.models as models\n"
        "for module in pkgutil.walk_packages(models.__path__, 'worldstereo_ros.models.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(models.WorldStereoTransformer.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.strip() == "WorldStereoTransformer", run.stderr[-2000:]


# --- rejected inputs ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(1, 16, 4, 4, 6)}, r"hidden_states has shape \(1, 16, 4, 4, 6\); \(batch, 36"),
        ({"hidden_states": torch.zeros(1, 36, 4, 5, 6)}, "4x5x6 does not divide"),
        ({"timestep": torch.zeros(3)}, r"timestep has shape \(3\,\)"),
        ({"encoder_hidden_states": torch.zeros(1, 77, 24)}, "exactly 512 text tokens"),
        ({"encoder_hidden_states_image": None}, "no image embedding"),
        ({"render_latent": None}, "control branch: render_latent and render_mask are needed"),
        ({"render_mask": torch.zeros(1, 1, 4, 4, 6)}, "render_mask has shape"),
        ({"camera_embedding": None}, "camera_embedding is missing"),
        ({"layout": torch.zeros(1, 20, 4, 4, 6)}, "layout is given and the control branch takes 0 channels"),
        ({"ref_index": None}, "without ref_index"),
        ({"ref_index": torch.tensor([0, 1, 3])}, "with 4 keyframes its values must be in 0..2"),
        ({"ref_index": torch.tensor([0, -1, 1])}, "must be in 0..2"),
        ({"ref_index": torch.tensor([0, 1])}, "ref_index has shape"),
        ({"camera_qt_ref": None}, "without camera_qt_ref"),
        ({"camera_qt": torch.zeros(1, 3, 7)}, "camera_qt has shape"),
        ({"reference_latent": torch.zeros(1, 16, 3, 4, 6)}, "reference_latent has shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_inputs_raise(change, message):
    model = tiny_transformer()
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_inputs(model), **change})


def test_correspondence_without_points_raises():
    model = tiny_transformer(reference_attention="correspondence")
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="no reference_points were given"):
        model(**inputs)
    with pytest.raises(ValueError, match="reference_points have shape"):
        model(**inputs, reference_points=torch.zeros(1, 4, 3, 2, 3, 2))
    with pytest.raises(ValueError, match="choose one of full, paired"):
        model.set_reference_attention("local")
    with pytest.raises(ValueError, match="auto, groups"):
        model.set_reference_attention("full", "fast")
