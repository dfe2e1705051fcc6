"""Context-window attention: the same result from all implementations, also where the last block is shorter."""

import pytest
import torch
from helpers.checkpoints import CONTROL, tiny_inputs, tiny_transformer

from worldstereo_ros.models.worldstereo.context_window import ContextWindow, block_mask, make_context_plan
from worldstereo_ros.models.worldstereo.masks import TokenGrid
from worldstereo_ros.utils.errors import InputError

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


def tokens(frames, rows=2, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, frames * rows * columns, 2, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 24, 37])
@pytest.mark.parametrize(
    "window", [ContextWindow(), ContextWindow(1, 1, 4), ContextWindow(0, 0, 2), ContextWindow(9, 2, 3)]
)
def test_all_implementations_agree(frames, window):
    q, k, v = tokens(frames)
    grid = TokenGrid(frames, 2, 3, ())
    results = [
        make_context_plan(window, grid, implementation=name, device=CPU).attend(q, k, v)
        for name in ("dense", "groups", "flex", "auto")
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_flex_attention_on_cuda_agrees_with_the_dense_mask():
    window, device = ContextWindow(), torch.device("cuda")
    q, k, v = (t.cuda() for t in tokens(37, rows=4, columns=4))
    grid = TokenGrid(37, 4, 4, ())
    dense, flex = (
        make_context_plan(window, grid, implementation=name, device=device).attend(q, k, v)
        for name in ("dense", "flex")
    )
    torch.testing.assert_close(flex, dense, atol=1e-3, rtol=1e-3)


def test_key_ranges_are_the_mask():
    for window in (ContextWindow(), ContextWindow(1, 1, 4), ContextWindow(0, 0, 2), ContextWindow(9, 2, 3)):
        for frames in (1, 5, 16, 41):
            mask = window.frame_mask(frames)
            for frame in range(frames):
                allowed = torch.zeros(frames, dtype=torch.bool)
                for first, end in window.key_ranges(frame // window.stride, frames):
                    assert not allowed[first:end].any()  # ranges do not overlap: no key counts twice
                    allowed[first:end] = True
                assert torch.equal(allowed, mask[frame])


@pytest.mark.parametrize(("frames", "kept"), [(24, 0.89), (32, 0.75), (40, 0.64), (48, 0.56), (80, 0.36)])
def test_share_of_kept_blocks_is_the_published_one(frames, kept):
    assert ContextWindow().kept_fraction(frames) == pytest.approx(kept, abs=0.005)
    mask = block_mask((frames // 8, 2, 3), ContextWindow())
    assert mask.float().mean().item() == pytest.approx(kept, abs=0.005)


@torch.no_grad()
def test_a_distant_frame_does_not_matter_and_a_near_one_does():
    model = tiny_transformer(control=None, num_layers=1)
    window = ContextWindow(context=1, window=1, stride=2)
    inputs = tiny_inputs(model, frames=9, ref_index=())
    model.set_context_window(window)
    before = model(**inputs).sample
    for frame, matters in ((0, True), (2, False), (6, True), (8, True)):
        changed = {**inputs, "hidden_states": inputs["hidden_states"].clone()}
        changed["hidden_states"][:, :, frame] += 1
        after = model(**changed).sample
        assert (not torch.equal(after[:, :, 7], before[:, :, 7])) == matters, frame


def test_wrong_windows_and_models_are_errors():
    with pytest.raises(InputError, match="stride 0"):
        ContextWindow(stride=0)
    with pytest.raises(InputError, match="control branch"):
        tiny_transformer(control=CONTROL).set_context_window(ContextWindow())
    with pytest.raises(InputError, match="implementation is 'fast'"):
        tiny_transformer(control=None).set_context_window(None, "fast")
    with pytest.raises(InputError, match="implementation is 'fast'"):
        make_context_plan(ContextWindow(), TokenGrid(4, 2, 2, ()), implementation="fast", device=CPU)
    with pytest.raises(InputError, match="no references beside them"):
        make_context_plan(ContextWindow(), TokenGrid(4, 2, 2, (1,)), device=CPU)
