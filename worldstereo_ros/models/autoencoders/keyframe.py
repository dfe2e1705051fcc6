"""The keyframe autoencoder: Wan's video autoencoder, reduced without loss to the pictures it is used on.

WorldStereo encodes every keyframe as a video of one frame. Such a frame has zeros before it in time, so a causal 3-D
convolution sees it through the last temporal slice of its kernel alone, and the temporal resamplers pass it by. What
remains is a 2-D network: the same numbers, and frames that can go through it side by side.
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

from worldstereo_ros.utils.errors import InputError


class ChannelNorm(nn.Module):
    """Scales the channel vector of every pixel to length sqrt(channels), then channel by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same; the length is taken in float32."""
        return functional.normalize(x.float(), dim=1).to(x.dtype) * self.scale * self.gamma


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out_channels, H, W)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        return self.conv2(functional.silu(self.norm2(y))) + self.conv_shortcut(x)


class AttentionBlock(nn.Module):
    """Attention of one head over all pixels of a picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).contiguous().chunk(3, dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.proj(y)


class Resample(nn.Module):
    """Half or twice the size."""

    def __init__(self, channels: int, out_channels: int, up: bool) -> None:
        super().__init__()
        if up:
            before: nn.Module = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
            conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        else:
            before = nn.ZeroPad2d((0, 1, 0, 1))
            conv = nn.Conv2d(channels, out_channels, 3, stride=2)
        self.resample = nn.Sequential(before, conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out_channels, H/2 or 2H, W/2 or 2W)."""
        return self.resample(x)


class MidBlock(nn.Module):
    """Residual, attention, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList((ResidualBlock(channels, channels), ResidualBlock(channels, channels)))
        self.attentions = nn.ModuleList((AttentionBlock(channels),))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class UpBlock(nn.Module):
    """Residual blocks, then twice the size unless it is the last."""

    def __init__(self, channels: int, out_channels: int, blocks: int, up: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.upsamplers = nn.ModuleList([Resample(out_channels, out_channels // 2, up=True)] if up else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H or 2H, W or 2W)."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Picture to the moments of its latent."""

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
        """(N, channels, H, W) to (N, out_channels, H/8, W/8)."""
        x = self.conv_in(x)
        for layer in self.down_blocks:
            x = layer(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, z_dim: int, widths: list[int], out_channels: int, blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        last = len(widths) - 2
        self.up_blocks = nn.ModuleList(
            # The upsampler before has halved the channels.
            UpBlock(a // 2 if level else a, b, blocks + 1, up=level < last)
            for level, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(N, z_dim, h, w) to (N, out_channels, 8h, 8w)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class KeyframeAutoencoder(ModelMixin, ConfigMixin):
    """Pictures to normalised latents and back, any number at once.

    Args:
        base_dim ... latents_std: as diffusers' `AutoencoderKLWan`, whose configuration this takes as it is.

    Raises:
        ValueError: a configuration of Wan 2.2's residual, patched autoencoder, which WorldStereo does not use.
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
            raise InputError("This is a Wan 2.2 autoencoder (residual, patched); Wan 2.1's is needed.")
        if len(latents_mean) != z_dim or len(latents_std) != z_dim:
            raise InputError(f"latents_mean and latents_std must have {z_dim} numbers each, one for a channel.")
        down = [base_dim * m for m in (1, *dim_mult)]
        up = [(decoder_base_dim or base_dim) * m for m in (dim_mult[-1], *reversed(dim_mult))]
        self.encoder = Encoder(in_channels, down, 2 * z_dim, num_res_blocks, list(attn_scales))
        self.quant_conv = nn.Conv2d(2 * z_dim, 2 * z_dim, 1)
        self.post_quant_conv = nn.Conv2d(z_dim, z_dim, 1)
        self.decoder = Decoder(z_dim, up, out_channels, num_res_blocks)
        self.factor = 2 ** (len(dim_mult) - 1)

    @classmethod
    def from_wan(cls, wan: AutoencoderKLWan) -> KeyframeAutoencoder:
        """The same network for single pictures, of the same type and on the same device; it shares tensors with it."""
        with torch.device("meta"):
            model = cls(**{k: v for k, v in wan.config.items() if not k.startswith("_")})
        model.load_state_dict(flatten_weights(wan.state_dict()), assign=True)
        return model.eval()

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.config.z_dim

    def encode(self, frames: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """The mode of every frame's latent, normalised by the published mean and deviation.

        Args:
            frames: (N, 3, H, W) or (b, 3, F, H, W) in [-1, 1]; H and W multiples of 8.
            batch: frames that go through side by side; None: all.

        Returns:
            (N, 16, H/8, W/8) or (b, 16, F, H/8, W/8), type of `frames`.

        Raises:
            ValueError: another shape.
        """
        pictures, clips = _pictures(frames, "frames", self.config.in_channels)
        if pictures.shape[-2] % self.factor or pictures.shape[-1] % self.factor:
            size = f"{pictures.shape[-2]}x{pictures.shape[-1]}"
            raise InputError(f"Frames of {size} were given; height and width must be multiples of {self.factor}.")
        latents = torch.cat([self._encode(part) for part in pictures.split(batch or len(pictures))])
        return _clips(latents, clips).to(frames.dtype)

    def decode(self, latents: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        """Pictures in [-1, 1] of normalised latents.

        Args:
            latents: (N, 16, h, w) or (b, 16, F, h, w).
            batch: frames that go through side by side; None: all.

        Returns:
            (N, 3, 8h, 8w) or (b, 3, F, 8h, 8w), type of `latents`.

        Raises:
            ValueError: another shape.
        """
        pictures, clips = _pictures(latents, "latents", self.config.z_dim)
        frames = torch.cat([self._decode(part) for part in pictures.split(batch or len(pictures))])
        return _clips(frames, clips).to(latents.dtype)

    def decode_frames(self, latents: torch.Tensor, batch: int = 1) -> Iterator[torch.Tensor]:
        """Yields (3, 8h, 8w) pictures in order, each as soon as its `batch` is decoded.

        Args:
            latents: (16, F, h, w) of one clip.
            batch: frames that are decoded together: one for the first picture soonest, more for speed.

        Raises:
            ValueError: another shape.
        """
        if latents.ndim != 4 or latents.shape[0] != self.config.z_dim:
            raise InputError(f"latents has shape {tuple(latents.shape)}; ({self.config.z_dim}, F, h, w) was expected.")
        for part in latents.transpose(0, 1).split(batch):
            yield from self._decode(part).to(latents.dtype)

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        moments = self.quant_conv(self.encoder(pictures.to(self.dtype)))
        mode = moments[:, : self.config.z_dim].float()
        mean, std = self._statistics(mode.device)
        return (mode - mean) / std

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(latents.device)
        z = latents.float() * std + mean
        return self.decoder(self.post_quant_conv(z.to(self.dtype))).clamp(-1, 1)

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Not buffers: a cast of the model to half precision would round them.
        mean, std = (torch.tensor(n, device=device) for n in (self.config.latents_mean, self.config.latents_std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def flatten_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of `AutoencoderKLWan` to those of `KeyframeAutoencoder`.

    Causal kernels (out, in, time, h, w) keep their last temporal slice, norms lose an axis, and the temporal
    resamplers, which a single frame never meets, are left out. Weights that are 2-D already stay as they are.
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


def flat_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that `flatten_weights` makes of a tensor, None where it leaves it out."""
    if ".time_conv." in name:
        return None
    if name.endswith(".gamma") and len(shape) == 4:
        return shape[:3]
    return (*shape[:2], *shape[3:]) if name.endswith(".weight") and len(shape) == 5 else shape


def _pictures(x: torch.Tensor, name: str, channels: int) -> tuple[torch.Tensor, int | None]:
    if x.ndim not in (4, 5) or x.shape[1] != channels or 0 in x.shape:
        want = f"(N, {channels}, H, W) or (b, {channels}, F, H, W)"
        raise InputError(f"{name} has shape {tuple(x.shape)}; {want} was expected.")
    return (x, None) if x.ndim == 4 else (x.transpose(1, 2).flatten(0, 1), len(x))


def _clips(x: torch.Tensor, clips: int | None) -> torch.Tensor:
    return x if clips is None else x.unflatten(0, (clips, -1)).transpose(1, 2)
