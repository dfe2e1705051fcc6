"""The stereo refiner: shapes, what it leaves alone, frames one at a time, and its files."""

import pytest
import torch
from safetensors.torch import save_file

from worldstereo_ros.models.checkpoints.saving import write_json
from worldstereo_ros.models.stereo_refiner import RefinerHistory, StereoCondition, StereoRefiner, load_stereo_refiner
from worldstereo_ros.utils.errors import InputError

SMALL = {"width": 32, "heads": 2, "depth": 2, "pixel_width": 8}
FRAMES, HEIGHT, WIDTH, MARGIN = 3, 32, 48, 16


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def condition(batch: int = 1) -> StereoCondition:
    painted = torch.zeros(batch, FRAMES, 1, HEIGHT, WIDTH)
    painted[..., 10:20, 20:26] = 1
    painted[:, 1, :, 4:8, 8:12] = 1
    return StereoCondition(
        torch.rand(batch, FRAMES, 3, HEIGHT, WIDTH) * 2 - 1,
        painted,
        torch.zeros_like(painted),
        torch.rand_like(painted) * 20,
        torch.rand(batch, FRAMES, 3, HEIGHT, WIDTH + MARGIN) * 2 - 1,
    )


def trained() -> StereoRefiner:
    """A refiner all of whose parts do something."""
    model = StereoRefiner(**SMALL).eval()
    with torch.no_grad():
        for block in model.temporal_blocks:
            block.attn.proj.weight.normal_(std=0.3)
            block.mlp.fc2.weight.normal_(std=0.3)
        model.out.weight.normal_(std=0.2)
    return model


def test_the_default_fits_into_the_package():
    model = StereoRefiner()
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2.4e6  # less than 5 MB in bfloat16


def test_untrained_it_returns_the_fill():
    given = condition(2)
    model = StereoRefiner(**SMALL).eval()
    made = model(given.filled + 0.1, torch.tensor([1.0, 0.4]), given)
    assert torch.equal(made, given.filled)


def test_known_pixels_never_change():
    given = condition()
    made = trained().refine(given)
    painted = given.painted.expand_as(made) > 0
    assert torch.equal(made[~painted], given.filled[~painted])
    assert (made[painted] - given.filled[painted]).abs().mean() > 0.01


def test_the_reference_and_frames_before_matter():
    given, model = condition(), trained()
    made = model.refine(given)
    reference = given.reference.clone()
    reference[:, 0] = -reference[:, 0]
    other = model.refine(StereoCondition(**{**vars(given), "reference": reference}))
    changed = (other - made).abs().amax((0, 2, 3, 4))
    assert changed[0] > 1e-4  # reference attention
    assert changed[1] > 1e-5  # temporal interaction learning, or attention over time


def test_frames_after_do_not_matter():
    given, model = condition(), trained()
    first = StereoCondition(*(part[:, :1] for part in vars(given).values()))
    time = torch.ones(1)
    # The deviation strength is that of a whole clip: it is made the same.
    same = StereoCondition(**{**vars(given), "reference": given.filled[..., :1].expand_as(given.reference)})
    model.deviation_embedder.requires_grad_(False).mlp[2].weight.zero_()
    alone = model(first.filled, time, StereoCondition(**{**vars(first), "reference": same.reference[:, :1]}))
    assert torch.allclose(model(same.filled, time, same)[:, :1], alone, atol=1e-5)


def test_one_frame_at_a_time_gives_what_a_clip_gives():
    given, model = condition(2), trained()
    model.deviation_embedder.requires_grad_(False).mlp[2].weight.zero_()
    time = torch.ones(2)
    clip = model(given.filled, time, given)
    history, frames = RefinerHistory(), []
    for index in range(FRAMES):
        frame = StereoCondition(*(part[:, index : index + 1] for part in vars(given).values()))
        frames.append(model(frame.filled, time, frame, history=history))
    assert torch.allclose(torch.cat(frames, dim=1), clip, atol=1e-5)
    assert len(history.tokens) == FRAMES
    with pytest.raises(InputError, match="one at a time"):
        model(given.filled, time, given, history=history)


def test_saved_weights_are_loaded(tmp_path):
    model = trained()
    save_file(model.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    write_json(tmp_path / "config.json", {"_class_name": "StereoRefiner", **config})
    loaded, given = load_stereo_refiner(tmp_path), condition()
    assert torch.allclose(loaded.refine(given), model.refine(given), atol=1e-5)
    assert load_stereo_refiner(tmp_path / "nothing") is None


@pytest.mark.parametrize("switch", ["reference_attention", "deviation_strength", "temporal_interaction"])
def test_parts_can_be_left_out_for_ablations(switch):
    whole, less = StereoRefiner(**SMALL), StereoRefiner(**SMALL, **{switch: False})
    gone = {
        "reference_attention": "reference.", "deviation_strength": "deviation_embedder.", "temporal_interaction": " "
    }[switch]  # fmt: skip
    assert set(less.state_dict()) == {name for name in whole.state_dict() if not name.startswith(gone)}
    model = trained()
    less.load_state_dict(model.state_dict(), strict=False)
    given = condition()
    assert (less.eval().refine(given) - model.refine(given)).abs().max() > 1e-5
    history = RefinerHistory()
    for index in range(2):
        frame = StereoCondition(*(part[:, index : index + 1] for part in vars(given).values()))
        assert less.refine(frame, history=history).isfinite().all()


def test_without_reference_and_deviation_the_camera_image_does_not_matter():
    model = StereoRefiner(**SMALL, reference_attention=False, deviation_strength=False).eval()
    model.out.requires_grad_(False).weight.normal_(std=0.2)
    given = condition()
    other = StereoCondition(**{**vars(given), "reference": -given.reference})
    assert torch.equal(model.refine(other), model.refine(given))


@pytest.mark.parametrize("part", ["painted", "reference", "filled"])
def test_shapes_that_do_not_fit_are_refused(part):
    given = condition()
    odd = StereoCondition(**{**vars(given), part: getattr(given, part)[..., :-4]})
    with pytest.raises(InputError, match="were expected"):
        StereoRefiner(**SMALL)(given.filled, torch.ones(1), odd)
