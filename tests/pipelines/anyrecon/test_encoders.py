"""The blank prompt and the CLIP tokens against transformers' networks with the same weights."""

import pytest
import torch
from helpers.anyrecon_files import IMAGE_DIM, TEXT_DIM, clip, text_encoder

from worldstereo_ros.models.checkpoints.weights import CheckpointError
from worldstereo_ros.pipelines.anyrecon.encoders import blank_text, clip_pixels, load_clip

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_blank_text_is_that_of_umt5(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    tensors = text_encoder(seed=3)
    torch.save(tensors, tmp_path / "text.pth")
    sizes = {"vocab_size": 7, "d_model": TEXT_DIM, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2}
    model = UMT5EncoderModel(UMT5Config(**sizes)).eval()
    attention, feed_forward = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    names = {
        **{f"attn.{n}.weight": f"{attention}.{n}.weight" for n in "qkvo"},
        "pos_embedding.embedding.weight": f"{attention}.relative_attention_bias.weight",
        "norm1.weight": "layer.0.layer_norm.weight",
        "norm2.weight": "layer.1.layer_norm.weight",
        "ffn.gate.0.weight": f"{feed_forward}.wi_0.weight",
        "ffn.fc1.weight": f"{feed_forward}.wi_1.weight",
        "ffn.fc2.weight": f"{feed_forward}.wo.weight",
    }
    state = {f"encoder.block.{i}.{new}": tensors[f"blocks.{i}.{old}"] for i in range(2) for old, new in names.items()}
    state |= dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight"), tensors["token_embedding.weight"])
    state["encoder.final_layer_norm.weight"] = tensors["norm.weight"]
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    expected = model(torch.tensor([[1]])).last_hidden_state[0, 0]
    text = blank_text(tmp_path / "text.pth", TEXT_DIM)
    assert text.shape == (1, 512, TEXT_DIM)
    torch.testing.assert_close(text[0, 0], expected)
    assert (text[0, 1:] == 0).all()


@torch.no_grad()
def test_clip_tokens_are_those_before_the_last_layer(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    layers, hidden, patch = 3, 48, 56
    tensors = clip(seed=4, layers=layers, hidden=hidden, patch=patch)
    torch.save(tensors, tmp_path / "clip.pth")
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=16,
        image_size=224, patch_size=patch, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    state = {
        "embeddings.class_embedding": tensors["visual.cls_embedding"].flatten(),
        "embeddings.patch_embedding.weight": tensors["visual.patch_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["visual.pos_embedding"][0],
    }
    modules = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    modules |= {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    for leaf in ("weight", "bias"):
        state[f"pre_layrnorm.{leaf}"] = tensors[f"visual.pre_norm.{leaf}"]
        state[f"post_layernorm.{leaf}"] = tensors[f"visual.post_norm.{leaf}"]
        for i in range(layers):
            old, new = f"visual.transformer.{i}", f"encoder.layers.{i}"
            state |= {f"{new}.{b}.{leaf}": tensors[f"{old}.{a}.{leaf}"] for a, b in modules.items()}
            parts = tensors[f"{old}.attn.to_qkv.{leaf}"].chunk(3)
            state |= {f"{new}.self_attn.{n}_proj.{leaf}": t for n, t in zip("qkv", parts, strict=True)}
    root = "vision_model." if hasattr(model, "vision_model") else ""
    model.load_state_dict({f"{root}{name}": tensor for name, tensor in state.items()})
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model(clip_pixels(image), output_hidden_states=True).hidden_states[-2]
    tokens = load_clip(tmp_path / "clip.pth", IMAGE_DIM)(image)
    assert tokens.shape == (1, 1 + (224 // patch) ** 2, IMAGE_DIM)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"is not the UMT5 encoder of Wan: it lacks 1 tensor \(norm.weight\)"),
        (lambda t: t.update({"extra": torch.zeros(1)}), r"has 1 tensor too many \(extra\)"),
        (lambda t: t.update({"blocks.0.ffn.fc1.weight": torch.zeros(9, TEXT_DIM)}), "and should be"),
        (lambda t: t.update({"norm.weight": torch.full((TEXT_DIM,), torch.nan)}), "not finite"),
    ],
)
def test_text_files_of_something_else_are_errors(tmp_path, edit, message):
    tensors = text_encoder()
    edit(tensors)
    torch.save(tensors, tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match=message):
        blank_text(tmp_path / "text.pth", TEXT_DIM)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("visual.cls_embedding"), r"is not the CLIP model of Wan: it lacks 1 tensor"),
        (lambda t: t.update({"visual.extra": torch.zeros(1)}), r"has 1 tensor too many \(visual.extra\)"),
        (lambda t: t.update({"visual.cls_embedding": torch.zeros(1, 1, 9)}), r"is \(1, 1, 9\) and should be"),
        (lambda t: t.update({"visual.pre_norm.bias": torch.full((IMAGE_DIM,), torch.inf)}), "not finite"),
    ],
)
def test_clip_files_of_something_else_are_errors(tmp_path, edit, message):
    tensors = clip()
    edit(tensors)
    torch.save(tensors, tmp_path / "clip.pth")
    with pytest.raises(CheckpointError, match=message):
        load_clip(tmp_path / "clip.pth", IMAGE_DIM)
