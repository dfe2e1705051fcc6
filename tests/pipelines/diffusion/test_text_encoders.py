"""Text and image encoders whose configuration is out of proportion, or names something on the hub."""

import json
import shutil

import pytest
import torch
from helpers.checkpoints import MEMORY, change_config, edit_tensors, write_checkpoint

from worldstereo_ros.models.checkpoints.hub import find_checkpoint, offline
from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.diffusion.text_encoders import load_image_encoder, load_text_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
HUB_ID = "someone/other-model"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    write_checkpoint(root, MEMORY, encoders=True)
    return root


@pytest.fixture
def root(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path / "model"


def load(root, part):
    loader = load_text_encoder if part == "text_encoder" else load_image_encoder
    return loader(find_checkpoint(root), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_encoder", {"num_layers": 10**6}, "num_layers is 1000000; at most 512"),
        ("text_encoder", {"num_decoder_layers": 10**6}, "num_decoder_layers is 1000000"),
        ("text_encoder", {"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ("text_encoder", {"d_ff": 10**9}, "d_ff is 1000000000"),
        ("text_encoder", {"d_ff": 2**20}, r"describes a model of \d{8,} numbers, and its weights are \d{5}"),
        ("text_encoder", {"d_kv": 2**20, "num_heads": 512}, r"describes a model of \d{10,} numbers"),
        ("text_encoder", {"relative_attention_num_buckets": 2**21}, "describes a model of"),
        ("text_encoder", {"num_layers": 3}, "text_encoder lacks 10 tensors: "),
        ("text_encoder", {"d_model": 48}, "d_model is 48 and the transformer expects 24"),
        ("text_encoder", {"num_heads": "three"}, "no valid UMT5EncoderModel"),
        ("text_encoder", {"vocab_size": 8}, "8 columns|cannot be loaded|tokens and the text encoder 8"),
        ("image_encoder", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ("image_encoder", {"image_size": 10**9}, "image_size is 1000000000"),
        ("image_encoder", {"image_size": 2**20}, "describes a model of"),
        ("image_encoder", {"intermediate_size": 2**20}, "describes a model of"),
        ("image_encoder", {"hidden_size": 40}, "hidden_size is 40 and the transformer expects 20"),
        ("image_encoder", {"patch_size": 0}, "no valid CLIPVisionModel"),
    ],
    ids=str,
)
def test_encoder_configs_out_of_proportion(root, part, change, message):
    change_config(root / "base" / part, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(root, part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["size", "crop_size"])
@pytest.mark.parametrize(
    "value", [10**6, {"height": 10**6, "width": 8}, {"shortest_edge": "all"}, {"shortest_edge": 0}]
)
def test_image_processor_out_of_proportion(root, key, value):
    file = root / "base" / "image_processor" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=rf"{key}.* is .*1000000|sides of 1\.\.4096 pixels"):
        load(root, "image_encoder")


@pytest.mark.parametrize("part", ["text_encoder", "image_encoder"])
def test_wrapped_lora_and_pointer_files(root, part):
    folder = root / "base" / part
    weights = (folder / "model.safetensors").read_bytes()

    def wrap(tensors):
        wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(wrapped)

    edit_tensors(folder / "model.safetensors", wrap)
    with pytest.raises(CheckpointError, match=r"contain 'module\.': .* from a wrapped model\. Rename them"):
        load(root, part)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load(root, part)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": HUB_ID}))
    with pytest.raises(CheckpointError, match="is a LoRA"):
        load(root, part)


def test_tokenizer_that_is_a_pointer(root):
    folder = root / "base" / "tokenizer"
    (folder / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: It is a Git LFS pointer.*git lfs pull"):
        load(root, "text_encoder")


def test_huge_tokenizer(root):
    with (root / "base" / "tokenizer" / "tokenizer.json").open("ab") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(CheckpointError, match=r"has 1073741824 bytes; at most \d+ were expected in a tokenizer"):
        load(root, "text_encoder")


def test_hub_ids_in_configurations_are_never_fetched(root, no_network):
    names = ("_name_or_path", "name_or_path", "pretrained_model_name_or_path", "base_model_name_or_path", "tokenizer")
    code = dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), f"{HUB_ID}--code.Class")
    for part in ("tokenizer", "text_encoder", "image_encoder", "image_processor", "scheduler", "transformer", "vae"):
        for file in (root / "base" / part).glob("*.json"):
            content = json.loads(file.read_text())
            if file.name == "tokenizer.json":
                continue
            # The backbone's reader refuses arguments that it does not know.
            known = names[:1] if part in ("transformer", "vae") else names
            content.update(dict.fromkeys(known, HUB_ID))
            if part not in ("transformer", "vae"):
                content["auto_map"] = code
            file.write_text(json.dumps(content))
    pipeline = load_pipeline(str(root))
    assert pipeline.text_encoder("a room").shape[-1] == 24
    assert no_network == []


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "image_encoder", "scheduler"])
def test_missing_parts_are_not_fetched(root, no_network, part):
    """Nothing is looked for on the hub under the name of a local folder, or of what its configuration names."""
    shutil.rmtree(root / "base" / part)
    (root / "base" / part).mkdir()
    if part == "scheduler":
        (root / "base" / part / "scheduler_config.json").write_text(json.dumps(HUB_ID))
    elif part != "tokenizer":
        (root / "base" / part / "config.json").write_text(json.dumps({"_name_or_path": HUB_ID}))
    else:
        (root / "base" / part / "tokenizer_config.json").write_text(json.dumps({"tokenizer_file": HUB_ID}))
    with pytest.raises(ValueError, match=part):
        load_pipeline(str(root))
    assert no_network == []


def test_offline_ends_with_the_block(no_network):
    from huggingface_hub import constants, snapshot_download

    with offline(), pytest.raises(Exception, match="outgoing traffic has been disabled"):
        snapshot_download(HUB_ID)
    assert no_network == []
    assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(Exception, match=r"."):
        snapshot_download(HUB_ID)
    assert no_network  # so that the tests above would notice a fetch
