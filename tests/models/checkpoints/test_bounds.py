"""Numbers in configurations that would make a loader run or take memory without end."""

import json

import pytest
from helpers.checkpoints import DMD, change_config, write_checkpoint, write_small_checkpoint

from worldstereo_ros.models.checkpoints.bounds import check_numbers
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_autoencoder
from worldstereo_ros.models.checkpoints.weights import CheckpointError, read_json
from worldstereo_ros.models.depth_network import load_depth_network
from worldstereo_ros.models.schedulers import make_scheduler
from worldstereo_ros.weights.bundled import bundled_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_layers": 10**6}, r"num_layers is 1000000; at most 512"),
        ({"num_hidden_layers": 1e6}, r"num_hidden_layers is 1000000\.0"),
        ({"text_config": {"num_attention_heads": 10**6}}, r"text_config\.num_attention_heads is 1000000"),
        ({"blocks": [1, 10**4]}, "blocks is 10000; at most 64"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"hidden_size": -(10**9)}, "hidden_size is -1000000000"),
        ({"hidden_size": 10**4000}, r"hidden_size is an integer of \d+ bits"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"widths": [1] * 5000}, "widths has 5000 entries"),
    ],
)
def test_numbers_out_of_proportion(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        check_numbers(tmp_path / "config.json", content)


def test_numbers_of_published_models_pass(tmp_path):
    check_numbers(
        tmp_path / "config.json",
        {
            "vocab_size": 256_384, "d_model": 4096, "num_layers": 24, "num_heads": 64, "layer_norm_epsilon": 1e-6,
            "torch_dtype": "bfloat16", "tie": False, "latents_mean": [-0.7571] * 16, "rope": {"theta": 10_000.0},
        },
    )  # fmt: skip


def test_deeply_nested_and_huge_numbers_in_json(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"a": ' + "9" * 10_000 + "}")
    with pytest.raises(CheckpointError, match="could not be read as JSON"):
        read_json(file)
    content = {}
    for _ in range(100_000):
        content = {"a": content}
    check_numbers(file, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": 10**6}, "num_res_blocks is 1000000"),
        ({"base_dim": 10**9}, "base_dim is 1000000000"),
        ({"base_dim": 2**20}, "weights in .* do not fit its config"),
        ({"dim_mult": [1] * 40}, "dim_mult is .*four numbers were expected"),
        ({"latents_std": [0.0] * 16}, "latents_std is no list of positive numbers"),
        ({"latents_mean": "zero"}, "latents_mean is no list of finite numbers"),
        ({"z_dim": None}, "no valid autoencoder|do not fit"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_of_the_keyframe_autoencoder(tmp_path, change, message):
    write_checkpoint(tmp_path)
    file = tmp_path / "base" / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_autoencoder(find_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_blocks": [1, 1, 10**6]}, "encoder_blocks is 1000000; at most 64"),
        ({"widths": [10**9, 8, 8]}, "widths is 1000000000"),
        ({"widths": [2**20, 2**20, 2**20]}, "do not fit its config"),
        ({"z_dim": 10**6}, "no valid autoencoder"),
        ({"widths": 3}, "no valid autoencoder"),
        ({"latents_std": [-1.0] * 16}, "latents_std is no list of positive numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_of_the_image_autoencoder(tmp_path, change, message):
    write_small_checkpoint(tmp_path, variants=("worldstereo-memory-dmd",))
    change_config(tmp_path / "base" / "vae", **change)
    with pytest.raises(CheckpointError, match=message):
        load_autoencoder(find_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**6}, "layers is 1000000"),
        ({"blocks": [10**6, 1]}, "blocks is 1000000"),
        ({"pixels": 10**9}, "pixels is 1000000000"),
        ({"pixels": 0}, "pixels is 0; an integer in"),
        ({"typical_depth": 0}, "typical_depth is 0; a number in"),
        ({"typical_depth": float("nan")}, "typical_depth is nan"),
        ({"heads": 0}, "no valid depth network"),
        ({"widths": [2**19, 2**19, 3 * 2**19]}, "do not fit its config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configs_of_the_depth_network(tmp_path, change, message):
    source = bundled_folder("small") / "base" / "depth"
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(source / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**read_json(source / "config.json"), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_depth_network(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("owner/name", "holds a str; an object"),
        (["owner/name"], "holds a list"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many'"),
        ({"solver_order": float("inf")}, "solver_order is inf"),
        ({"solver_type": "unknown"}, "does not describe a UniPC scheduler"),
        ({"trained_betas": {"a": [1]}}, "does not describe a UniPC scheduler"),
        ({"timestep_spacing": None}, "does not describe a UniPC scheduler"),
        ({"final_sigmas_type": None}, "does not describe a UniPC scheduler"),
        (
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": None},
            "does not describe a UniPC",
        ),
    ],
    ids=str,
)
def test_configs_of_the_scheduler(tmp_path, no_network, content, message):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        make_scheduler({}, tmp_path)
    assert no_network == []


@pytest.mark.parametrize(
    "change",
    [{"dmd_end_steps": 10**9}, {"dmd_start_steps": "first"}, {"gen_shift": float("nan")}, {"gen_shift": 0}],
    ids=str,
)
def test_schedules_of_distilled_checkpoints(tmp_path, change):
    write_checkpoint(tmp_path, autoencoder=False)
    change_config(tmp_path / "worldstereo-memory-dmd", **{**DMD, **change})
    with pytest.raises(CheckpointError, match=next(iter(change))):
        find_checkpoint(tmp_path)
