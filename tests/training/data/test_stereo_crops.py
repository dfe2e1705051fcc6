"""Clips around what no frame has seen."""

import numpy as np
import pytest
import torch

from worldstereo_ros.training.data.stereo_crops import (
    HEIGHT_PX,
    MARGIN_PX,
    THERE_AND_BACK,
    TRUE_PAIR,
    WIDTH_PX,
    StereoCrops,
    cut_sides,
    join_crops,
    load_crops,
    refill,
    render_crops,
    views_of,
    with_painted,
    without_memory,
)
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def crops() -> StereoCrops:
    found = [render_crops("training", index, clips=2, supersample=1, light="plain") for index in range(3)]
    return next(each for each in found if each is not None and len(each.kind.unique()) == 2)


def test_shapes_and_kinds(crops):
    n = len(crops)
    assert crops.filled.shape == crops.target.shape == (n, 3, 3, HEIGHT_PX, WIDTH_PX)
    assert crops.reference.shape[-1] == WIDTH_PX + MARGIN_PX
    assert set(crops.kind.tolist()) == {TRUE_PAIR, THERE_AND_BACK}


def test_painted_pixels_are_holes_that_differ_from_the_truth_more(crops):
    assert not (crops.painted & ~crops.hole).any()
    assert crops.painted.float().mean() > 0.005
    rows = np.flatnonzero(crops.kind.numpy() == THERE_AND_BACK)
    back = crops.take(rows)
    error = (back.filled.float() - back.target.float()).abs().mean(2, keepdim=True)
    assert error[~back.hole].mean() < error[back.painted].mean()


def test_past_frames_fill_a_part_of_the_holes():
    found = [render_crops("training", index, clips=2, supersample=1, light="plain", clean=True) for index in range(4)]
    remembered = [(each.hole & ~each.painted).float().sum() for each in found if each is not None]
    assert sum(remembered) > 0
    for each in found:
        if each is None:
            continue
        assert set(each.kind.tolist()) == {TRUE_PAIR}
        known = (each.hole & ~each.painted).expand_as(each.filled)
        if known.any():  # but for resampling, what was remembered is the truth
            assert (each.filled.float() - each.target.float()).abs()[known].mean() < 12


def test_clips_that_are_cut_anywhere_have_sides(crops):
    found = render_crops("training", 0, clips=3, supersample=1, light="plain", anywhere=True)
    assert found is not None
    cut = with_painted(cut_sides(found))
    assert len(cut) > 0
    assert cut.painted.flatten(1).any(1).all()
    assert found.painted.float().mean() < crops.painted.float().mean()


def test_files_give_the_same(crops, tmp_path):
    crops.save(tmp_path / "a.npz")
    crops.take(np.array([0])).save(tmp_path / "b.npz")
    loaded = load_crops(sorted(tmp_path.glob("*.npz")))
    assert len(loaded) == len(crops) + 1
    assert torch.equal(loaded.target[:-1], crops.target)
    assert torch.equal(loaded.flow[-1], crops.flow[0])
    with pytest.raises(InputError, match="no clips"):
        load_crops([])


def test_without_memory_all_holes_are_painted():
    found = [render_crops("training", index, clips=2, supersample=1, light="plain", clean=True) for index in range(4)]
    crops = join_crops([each for each in found if each is not None])
    remembered = crops.hole & ~crops.painted
    assert remembered.any()
    lone = without_memory(crops)
    assert torch.equal(lone.painted, crops.hole)
    assert torch.equal(lone.hole, crops.hole)
    seen = (~crops.hole).expand_as(crops.filled)
    assert torch.equal(lone.filled[seen], crops.filled[seen])
    error = [
        (each.filled.float() - each.target.float()).abs().mean(2, keepdim=True)[remembered].mean()
        for each in (crops, lone)
    ]
    assert error[1] > error[0]


def test_views_are_filled_as_at_inference(crops):
    plain, cut, lone, both = views_of(crops)
    assert torch.equal(plain.painted, crops.painted)
    assert torch.equal(
        plain.filled[(~crops.painted).expand_as(crops.filled)], crops.filled[(~crops.painted).expand_as(crops.filled)]
    )
    assert torch.equal(refill(plain).filled, plain.filled)
    assert (cut.painted | lone.painted | both.painted).sum() == both.painted.sum()
    assert len(plain) == len(cut) == len(lone) == len(both) == len(crops)


def test_beyond_the_side_nothing_is_known(crops):
    cut = cut_sides(crops)
    beyond = torch.arange(WIDTH_PX) + crops.disparity.float() > WIDTH_PX - 1
    remembered = crops.hole & ~crops.painted
    assert cut.painted[beyond & ~remembered].all()
    assert torch.equal(cut.painted & ~beyond, crops.painted & ~beyond)
    known = (~cut.hole).expand_as(cut.filled)
    assert torch.equal(cut.filled[known], crops.filled[known])
    assert torch.equal(cut.target, crops.target)
    assert (cut.reference[..., WIDTH_PX:] == crops.reference[..., WIDTH_PX - 1 : WIDTH_PX]).all()
    changed = cut.painted & ~crops.hole  # seen before: the fill knows them no longer
    error = (cut.filled.float() - cut.target.float()).abs().mean(2, keepdim=True)[changed].mean()
    assert error > (crops.filled.float() - crops.target.float()).abs().mean(2, keepdim=True)[changed].mean()
