"""AnyRecon's network, LoRA, sampler and autoencoder against golden numbers of the reference implementation.

Set `WORLDSTEREO_GOLDEN_ANYRECON=folder` to test against another set of the same layout. Sizes, counts and tolerances
are those of its `manifest.json`.
"""

import json
import re

import pytest
import torch
from helpers.anyrecon import dense_inputs, entries_that_are_no_factors, load_transformer, tensors_of, tolerance_of
from safetensors.torch import load_file

from worldstereo_ros.models.autoencoders.tiling import Tiling, decode_tiled
from worldstereo_ros.models.checkpoints.wan_layout import transformer_name
from worldstereo_ros.models.checkpoints.wan_loading import (
    PreciseTimesteps,
    load_wan_autoencoder,
    open_wan_transformer,
)
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.models.schedulers import DMDScheduler
from worldstereo_ros.models.worldstereo.attention import AttentionPlan
from worldstereo_ros.models.worldstereo.context_window import ContextWindow, block_mask, make_context_plan
from worldstereo_ros.models.worldstereo.masks import TokenGrid

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def manifest(golden_anyrecon):
    return json.loads((golden_anyrecon / "manifest.json").read_text())["files"]


@pytest.fixture(scope="module")
def transformer(golden_anyrecon):
    return load_transformer(golden_anyrecon)


def assert_close(actual, expected, tolerance, what):
    """Within the tolerance, and half a step of the format in which the expected numbers are stored."""
    assert actual.shape == expected.shape, what
    if expected.dtype in (torch.float16, torch.bfloat16):
        step = torch.finfo(expected.dtype).eps * expected.float().abs().clamp(min=2**-14)
        tolerance = tolerance + step / 2
    error = (actual.float() - expected.float()).abs()
    assert (error <= tolerance).all(), f"{what}: {error.max().item():.2e}"


# --- dense ---


@torch.no_grad()
def test_dense_forwards_match(golden_anyrecon, manifest, transformer):
    file = "transformer/io_dense.safetensors"
    io, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    outputs = {name: match for name in io if (match := re.fullmatch(r"output_t([\d.]+)", name))}
    assert len(outputs) >= 2
    for name, match in outputs.items():
        sample = transformer(**dense_inputs(io, float(match[1]))).sample
        assert_close(sample, io[name], tolerance, name)


@torch.no_grad()
def test_dense_intermediate_values_match(golden_anyrecon, manifest, transformer):
    file = "transformer/io_dense.safetensors"
    io, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    seen = {}
    modules = {
        "image_tokens": transformer.condition_embedder.image_embedder,
        "patch_embedding_output": transformer.patch_embedding,
        "block0_self_attention_output": transformer.blocks[0].attn1,
        "block0_output": transformer.blocks[0],
    }

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        name = next(name for name in io if re.fullmatch(r"output_t([\d.]+)", name))
        transformer(**dense_inputs(io, float(name.removeprefix("output_t"))))
    finally:
        for handle in handles:
            handle.remove()
    compared = [name for name in modules if name in io]
    assert compared
    for name in compared:
        assert_close(seen[name], io[name], tolerance, name)


@torch.no_grad()
def test_order_of_captures_matters_as_in_the_reference(golden_anyrecon, manifest, transformer):
    file = "transformer/io_dense.safetensors"
    io, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    found = [match for name in io if (match := re.fullmatch(r"output_t([\d.]+)_captures_(\d+)_(\d+)_swapped", name))]
    assert found
    for match in found:
        first, second = int(match[2]), int(match[3])
        order = list(range(io["noisy_latent"].shape[2]))
        order[first], order[second] = order[second], order[first]
        swapped = {
            name: t[:, :, order] if name in ("noisy_latent", "mask", "condition_latent") else t
            for name, t in io.items()
        }
        sample = transformer(**dense_inputs(swapped, float(match[1]))).sample
        assert_close(sample, io[match[0]], tolerance, match[0])
        assert (sample - io[f"output_t{match[1]}"]).abs().max() > 10 * tolerance


# --- sparse ---


def test_block_masks_match(golden_anyrecon):
    masks = load_file(golden_anyrecon / "transformer/block_masks.safetensors")
    assert masks
    for name, expected in masks.items():
        numbers = [int(n) for n in re.findall(r"\d+", name)]
        if name.startswith("general_"):
            mask = block_mask(tuple(numbers[:3]), ContextWindow(*numbers[3:]))
        else:
            frames, rows, columns = numbers
            mask = block_mask((frames // 8, rows // 4, columns // 4), ContextWindow())
        assert torch.equal(mask, expected), name


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["groups", "dense"])
def test_sparse_forwards_match(golden_anyrecon, manifest, transformer, implementation):
    file = "transformer/io_sparse.safetensors"
    io, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    name = next(name for name in io if re.fullmatch(r"output_t([\d.]+)", name))
    inputs = dense_inputs(io, float(name.removeprefix("output_t")))
    frames, height, width = io["noisy_latent"].shape[2:]
    mask = block_mask((frames // 8, height // 8, width // 8), ContextWindow())
    assert torch.equal(mask, io["block_mask"])
    try:
        transformer.set_context_window(ContextWindow(), implementation)
        assert_close(transformer(**inputs).sample, io[name], tolerance, name)
    finally:
        transformer.set_context_window(None)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_sparse_self_attention_matches(golden_anyrecon, manifest, transformer):
    """The tokens that the set keeps, for all implementations and without a window."""
    io = load_file(golden_anyrecon / "transformer/io_sparse.safetensors")
    file = "transformer/io_sparse_layer.safetensors"
    layer, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    patch = transformer.config.patch_size
    frames, rows, columns = (n // p for n, p in zip(io["noisy_latent"].shape[2:], patch, strict=True))
    rotary = transformer.rope(torch.arange(frames), rows, columns)
    grid, device = TokenGrid(frames, rows, columns, ()), torch.device("cpu")
    plans = {
        name: ("output", make_context_plan(ContextWindow(), grid, implementation=name, device=device))
        for name in ("groups", "dense", "flex", "auto")
    }
    plans["no window"] = ("output_dense", AttentionPlan())
    tokens = io["self_attention_input"].float()
    for name, (expected, plan) in plans.items():
        out = transformer.blocks[0].attn1(tokens, rotary_emb=rotary, plan=plan)[:, layer["tokens_kept"]]
        assert_close(out, layer[expected], tolerance, name)


# --- LoRA ---


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_lora_merges_as_in_the_reference(golden_anyrecon, manifest, suffix):
    file, lora = "lora/merged.safetensors", golden_anyrecon / "lora" / f"lora{suffix}"
    expected, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    models = {
        "merged": load_transformer(golden_anyrecon, lora),
        "merged_alpha_half": load_transformer(golden_anyrecon, lora, scale=0.5),
        "merged_bf16": load_transformer(golden_anyrecon, lora, dtype=torch.bfloat16),
    }
    compared = set()
    for name, tensor in expected.items():
        kind, _, weight = name.partition(".")
        if kind in models:
            actual = models[kind].state_dict()[transformer_name(weight)]
            assert_close(actual.to(tensor.dtype), tensor, tolerance, name)
            compared.add(kind)
    assert "merged" in compared
    io = load_file(golden_anyrecon / "transformer/io_dense.safetensors")
    for name, tensor in expected.items():
        if match := re.fullmatch(r"output_t([\d.]+)(_alpha_half)?", name):
            sample = models["merged_alpha_half" if match[2] else "merged"](**dense_inputs(io, float(match[1]))).sample
            assert_close(sample, tensor, tolerance, name)


def test_lora_changes_what_the_reference_changes(golden_anyrecon, manifest, transformer):
    merged = load_transformer(golden_anyrecon, golden_anyrecon / "lora/lora.safetensors").state_dict()
    changed = {name for name, tensor in transformer.state_dict().items() if not torch.equal(tensor, merged[name])}
    assert changed == {transformer_name(name) for name in manifest["lora/merged.safetensors"]["changed"]}


def test_tensors_that_the_reference_drops_in_silence_are_named(golden_anyrecon):
    lora = golden_anyrecon / "lora/lora.safetensors"
    strangers = entries_that_are_no_factors(golden_anyrecon)
    if not strangers:
        pytest.skip("all tensors of this set's LoRA are factors")
    with pytest.raises(CheckpointError, match=re.escape(strangers[0])):
        open_wan_transformer(golden_anyrecon / "transformer", lora)


# --- sampler ---


def test_noise_levels_and_timesteps_match(golden_anyrecon, manifest):
    file = "sampler.safetensors"
    sampler, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    counts = [int(match[1]) for name in sampler if (match := re.fullmatch(r"sigmas_(\d+)", name))]
    assert counts
    for count in counts:
        scheduler = DMDScheduler(start_timestep=1000 / count, steps=count)
        assert_close(scheduler.sigmas[:-1], sampler[f"sigmas_{count}"], tolerance, f"sigmas {count}")
        assert_close(scheduler.timesteps, sampler[f"timesteps_{count}"], 1000 * tolerance, f"timesteps {count}")
        seen = scheduler.timesteps.to(torch.bfloat16).float()
        assert torch.equal(seen, sampler[f"timesteps_seen_bf16_{count}"])
        assert scheduler.sigmas[-1] == 0


def test_sampler_steps_match(golden_anyrecon, manifest):
    file = "sampler.safetensors"
    sampler, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    count = len([name for name in sampler if name.startswith("velocity_")])
    scheduler = DMDScheduler(start_timestep=1000 / count, steps=count)
    sample = sampler["start"]
    for index, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(sampler[f"velocity_{index}"], timestep, sample).prev_sample
        assert_close(sample, sampler[f"latent_after_{index}"], tolerance, f"step {index}")


def test_noise_and_sinusoids_match(golden_anyrecon, manifest):
    file = "sampler.safetensors"
    sampler, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    for name in tensors_of(sampler, r"noise_seed(\d+)_.*"):
        seed = int(re.match(r"noise_seed(\d+)_", name)[1])
        noise = torch.randn(sampler[name].shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(noise, sampler[name])
    for name in tensors_of(sampler, r"sinusoid_([\d.]+)"):
        expected = sampler[name]
        timestep = torch.tensor([float(name.removeprefix("sinusoid_"))])
        assert_close(PreciseTimesteps(expected.shape[1])(timestep), expected, tolerance, name)


# --- autoencoder ---


@torch.no_grad()
def test_autoencoder_matches(golden_anyrecon, manifest):
    file = "vae/io.safetensors"
    io, tolerance = load_file(golden_anyrecon / file), tolerance_of(manifest, file)
    autoencoder = load_wan_autoencoder(golden_anyrecon / "vae/model.safetensors")
    assert_close(autoencoder.encode(io["frames"].float()), io["latents"], tolerance, "latents")
    assert_close(autoencoder.decode(io["latents"]), io["decoded"], tolerance, "decoded")
    tiling = Tiling(tuple(manifest[file]["tile_size"]), tuple(manifest[file]["tile_stride"]))
    assert_close(decode_tiled(autoencoder, io["latents"], tiling), io["decoded_tiled"], tolerance, "tiled")
