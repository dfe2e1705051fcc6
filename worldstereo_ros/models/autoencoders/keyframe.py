"""The keyframe autoencoder: Wan's video autoencoder as an equivalent 2-D network for single frames.

WorldStereo encodes each keyframe as a video of one frame. All earlier frames are zero padding then, so that of each
causal 3-D kernel only the last temporal slice contributes, and the temporal resampling layers are skipped. What is left
is a 2-D network with the same output, which processes frames in batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from diffusers import AutoencoderKLWan
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from worldstereo_ros.models.autoencoders.frames import flatten_frames, unflatten_frames
from worldstereo_ros.utils.errors import InputError


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel, with a learned scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape; the norm is computed in float32."""
        return functional.normalize(x.float(), dim=1).to(x.dtype) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        is_identity = channels == out_channels
        self.conv_shortcut = nn.Identity() if is_identity else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, H, W)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        return self.conv2(functional.silu(self.norm2(y))) + self.conv_shortcut(x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape."""
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).contiguous().chunk(3, dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj(y)


class Resample(nn.Module):
    """Halves or doubles the resolution.

    Args:
        channels: channels of the input.
        out_channels: channels of the output.
        up: True doubles, False halves.
    """

    def __init__(self, channels: int, out_channels: int, up: bool) -> None:
        super().__init__()
        if up:
            resize: nn.Module = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
            conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        else:
            resize = nn.ZeroPad2d((0, 1, 0, 1))
            conv = nn.Conv2d(channels, out_channels, 3, stride=2)
        self.resample = nn.Sequential(resize, conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, H/2, W/2) or (N, out_channels, 2H, 2W)."""
        return self.resample(x)


class MidBlock(nn.Module):
    """A residual block, an attention block and another residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList((ResidualBlock(channels, channels), ResidualBlock(channels, channels)))
        self.attentions = nn.ModuleList((AttentionBlock(channels),))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    """Residual blocks, then an upsampling layer (`up`) that also halves the channels."""

    def __init__(self, channels: int, out_channels: int, blocks: int, up: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList([Resample(out_channels, out_channels // 2, up=True)] if up else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, H, W), or to (N, out_channels / 2, 2H, 2W) with `up`."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Maps an image to the moments (mean and log-variance) of its latent.

    Args:
        channels: channels of the image.
        widths: channels after the first convolution and at each resolution.
        out_channels: twice the latent channels.
        blocks: residual blocks at each resolution.
        scales: resolutions, relative to the input, at which residual blocks are followed by attention.
    """

    def __init__(self, channels: int, widths: list[int], out_channels: int, blocks: int, scales: list[float]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        current, scale = widths[0], 1.0
        for level, width in enumerate(widths[1:]):
            for _ in range(blocks):
                layers.append(ResidualBlock(current, width))
                if scale in scales:
                    layers.append(AttentionBlock(width))
                current = width
            if level < len(widths) - 2:
                layers.append(Resample(width, width, up=False))
                scale /= 2
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(current)
        self.norm_out = ChannelNorm(current)
        self.conv_out = nn.Conv2d(current, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, channels, H, W) to (N, out_channels, H/8, W/8)."""
        x = self.conv_in(x)
        for layer in self.down_blocks:
            x = layer(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Maps a latent to an image."""

    def __init__(self, z_dim: int, widths: list[int], out_channels: int, blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        last = len(widths) - 2
        self.up_blocks = nn.ModuleList(
            # The upsampling layer of the block before halves the channels.
            UpBlock(a // 2 if level else a, b, blocks + 1, up=level < last)
            for level, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Maps (N, z_dim, h, w) to (N, out_channels, 8h, 8w)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class KeyframeAutoencoder(ModelMixin, ConfigMixin):
    """Encodes frames to normalised latents and decodes them, each frame on its own.

    The arguments are those of diffusers' `AutoencoderKLWan`, so that its `config.json` can be used unchanged. Arguments
    that concern time alone have no effect.

    Args:
        base_dim: channels of the encoder at full resolution.
        decoder_base_dim: channels of the decoder at full resolution; None = `base_dim`.
        z_dim: latent channels.
        dim_mult: multiples of `base_dim` at each resolution.
        num_res_blocks: residual blocks of the encoder at each resolution; the decoder has one more.
        attn_scales: resolutions at which the encoder has attention.
        temperal_downsample: no effect.
        dropout: no effect.
        latents_mean: (z_dim,) mean of the encoder's output over the training set.
        latents_std: (z_dim,) standard deviation of the encoder's output over the training set.
        is_residual: must be False (True is Wan 2.2's autoencoder).
        in_channels: channels of input frames.
        out_channels: channels of decoded frames.
        patch_size: must be None or 1.
        scale_factor_temporal: no effect.
        scale_factor_spatial: no effect.

    Raises:
        InputError: the configuration is that of Wan 2.2's residual, patched autoencoder, which WorldStereo does not
            use, or the latent statistics do not have `z_dim` numbers.
    """

    @register_to_config
    def __init__(
        self,
        base_dim: int = 96,
        decoder_base_dim: int | None = None,
        z_dim: int = 16,
        dim_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_scales: tuple[float, ...] = (),
        temperal_downsample: tuple[bool, ...] = (False, True, True),
        dropout: float = 0.0,
        latents_mean: tuple[float, ...] = (0.0,) * 16,
        latents_std: tuple[float, ...] = (1.0,) * 16,
        is_residual: bool = False,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int | None = None,
        scale_factor_temporal: int | None = 4,
        scale_factor_spatial: int | None = 8,
    ) -> None:
        super().__init__()
        if is_residual or patch_size not in (None, 1):
            raise InputError("This is a Wan 2.2 autoencoder (residual, patched); a Wan 2.1 autoencoder was expected.")
        if len(latents_mean) != z_dim or len(latents_std) != z_dim:
            raise InputError(f"latents_mean and latents_std must have {z_dim} numbers each, one for a channel.")
        encoder_widths = [base_dim * m for m in (1, *dim_mult)]
        decoder_widths = [(decoder_base_dim or base_dim) * m for m in (dim_mult[-1], *reversed(dim_mult))]
        self.encoder = Encoder(in_channels, encoder_widths, 2 * z_dim, num_res_blocks, list(attn_scales))
        self.quant_conv = nn.Conv2d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = nn.Conv2d(z_dim, z_dim, 1)
        self.decoder = Decoder(z_dim, decoder_widths, out_channels, num_res_blocks)
        self.spatial_compression_ratio = 2 ** (len(dim_mult) - 1)

    @classmethod
    def from_wan(cls, wan: AutoencoderKLWan) -> KeyframeAutoencoder:
        """Makes the equivalent of a video autoencoder, of the same dtype and on the same device.

        The two share the tensors that need no conversion.
        """
        with torch.device("meta"):
            model = cls(**{k: v for k, v in wan.config.items() if not k.startswith("_")})
        model.load_state_dict(flatten_weights(wan.state_dict()), assign=True)
        return model.eval()

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""
        return self.config.z_dim

    @property
    def image_channels(self) -> int:
        """Number of channels of the images."""
        return self.config.out_channels

    def encode(self, frames: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Encodes each frame to the mode of its latent distribution, normalised by `latents_mean` and `latents_std`.

        Args:
            frames: (N, 3, H, W) or (b, 3, F, H, W) in [-1, 1]; H and W multiples of 8.
            batch_size: frames that are encoded together; None = all.

        Returns:
            (N, 16, H/8, W/8) or (b, 16, F, H/8, W/8), dtype of `frames`.

        Raises:
            InputError: `frames` has another shape.
        """
        images, num_videos = flatten_frames(frames, "frames", self.config.in_channels)
        ratio = self.spatial_compression_ratio
        if images.shape[-2] % ratio or images.shape[-1] % ratio:
            size = f"{images.shape[-2]}x{images.shape[-1]}"
            raise InputError(f"frames have size {size}; height and width must be multiples of {ratio}.")
        latents = torch.cat([self.encode_batch(part) for part in images.split(batch_size or len(images))])
        return unflatten_frames(latents, num_videos).to(frames.dtype)

    def decode(self, latents: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Decodes normalised latents to frames.

        Args:
            latents: (N, 16, h, w) or (b, 16, F, h, w).
            batch_size: frames that are decoded together; None = all.

        Returns:
            (N, 3, 8h, 8w) or (b, 3, F, 8h, 8w) in [-1, 1], dtype of `latents`.

        Raises:
            InputError: `latents` has another shape.
        """
        images, num_videos = flatten_frames(latents, "latents", self.config.z_dim)
        frames = torch.cat([self.decode_batch(part) for part in images.split(batch_size or len(images))])
        return unflatten_frames(frames, num_videos).to(latents.dtype)

    def decode_frames(self, latents: torch.Tensor, batch_size: int = 1) -> Iterator[torch.Tensor]:
        """Yields the (3, 8h, 8w) frames of a video in order, each as soon as its batch is decoded.

        Args:
            latents: (16, F, h, w) of one video.
            batch_size: frames that are decoded together; 1 gives the first frame earliest, more raises the throughput.

        Raises:
            InputError: `latents` has another shape.
        """
        if latents.ndim != 4 or latents.shape[0] != self.config.z_dim:
            raise InputError(f"latents has shape {tuple(latents.shape)}; ({self.config.z_dim}, F, h, w) was expected.")
        for part in latents.transpose(0, 1).split(batch_size):
            yield from self.decode_batch(part).to(latents.dtype)

    def encode_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, H, W) to normalised float32 latents (N, 16, H/8, W/8), without checks."""
        moments = self.quant_conv(self.encoder(images.to(self.dtype)))
        mode = moments[:, : self.config.z_dim].float()
        mean, std = self._latent_statistics(mode.device)
        return (mode - mean) / std

    def decode_batch(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps normalised latents (N, 16, h, w) to (N, 3, 8h, 8w) in [-1, 1], without checks."""
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps normalised latents (N, 16, h, w) to (N, 3, 8h, 8w), about in [-1, 1], for tiles that are blended."""
        mean, std = self._latent_statistics(latents.device)
        z = latents.float() * std + mean
        return self.decoder(self.post_quant_conv(z.to(self.dtype)))

    def _latent_statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Not buffers: casting the model to half precision would round them.
        mean, std = (torch.tensor(n, device=device) for n in (self.config.latents_mean, self.config.latents_std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def flatten_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts a state dict of `AutoencoderKLWan` to one of `KeyframeAutoencoder`.

    Causal kernels (out, in, time, h, w) are reduced to their last temporal slice, norms lose an axis, and the temporal
    convolutions are dropped. Tensors of a `KeyframeAutoencoder` are returned unchanged.

    Args:
        state: tensors by name.
    """
    flat = {}
    for name, tensor in state.items():
        if ".time_conv." in name:
            continue
        if name.endswith(".gamma") and tensor.ndim == 4:
            flat[name] = tensor[..., 0]
        elif name.endswith(".weight") and tensor.ndim == 5:
            flat[name] = tensor[:, :, -1].contiguous()
        else:
            flat[name] = tensor
    return flat


def flattened_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the shape that `flatten_weights` gives a tensor, or None if it drops the tensor."""
    if ".time_conv." in name:
        return None
    if name.endswith(".gamma") and len(shape) == 4:
        return shape[:3]
    return (*shape[:2], *shape[3:]) if name.endswith(".weight") and len(shape) == 5 else shape
