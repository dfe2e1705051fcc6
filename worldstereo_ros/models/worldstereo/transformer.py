"""The WorldStereo transformer: Wan's video backbone with a control branch and a memory branch.

Shapes and parameter names are those of the published checkpoints. The configuration determines sizes and branches:
without `controlnet_cfg` it is the plain backbone; `main_camera_embedding` in it adds the camera tokens of the memory
variants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding, WanTransformerBlock
from torch import nn

from worldstereo_ros.models.worldstereo.attention import (
    IMPLEMENTATIONS,
    AttentionPlan,
    StereoAttnProcessor,
    make_attention_plan,
)
from worldstereo_ros.models.worldstereo.context_window import ContextWindow, make_context_plan
from worldstereo_ros.models.worldstereo.control import ControlBranch
from worldstereo_ros.models.worldstereo.inputs import check_inputs
from worldstereo_ros.models.worldstereo.masks import MODES, Correspondence, TokenGrid
from worldstereo_ros.models.worldstereo.render_prior import with_render_prior
from worldstereo_ros.models.worldstereo.rotary import Rotary, RotaryEmbedding
from worldstereo_ros.models.worldstereo.token_sequence import TokenSequence
from worldstereo_ros.utils.errors import InputError


class WorldStereoBlock(WanTransformerBlock):
    """A Wan block for target and reference tokens.

    Both share modulation, self-attention and feed-forward network; only targets have cross-attention to text and image.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attn1.set_processor(StereoAttnProcessor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        reference_states: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: Rotary,
        plan: AttentionPlan,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Updates target and reference tokens.

        Args:
            hidden_states: (b, L, dim) target tokens.
            reference_states: (b, M, dim) reference tokens, or None.
            encoder_hidden_states: (b, text or image + text, dim) context.
            temb: (b, 6, dim) modulation.
            rotary_emb: rotary embedding of [references, targets].
            plan: self-attention; with `plan.first_query` above 0 the references are not updated.

        Returns:
            Target and reference tokens, same shapes.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        tokens = hidden_states
        if reference_states is not None:
            tokens = torch.cat((reference_states, hidden_states), dim=1)
        normed = (self.norm1(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        attended = self.attn1(normed, rotary_emb=rotary_emb, plan=plan)
        tokens = (tokens[:, plan.first_query :].float() + attended * gate).type_as(hidden_states)

        num_references = tokens.shape[1] - hidden_states.shape[1]
        targets = tokens[:, num_references:]
        # With a single context token the attention is the same for all queries: one query is enough.
        queries = targets[:, :1] if encoder_hidden_states.shape[1] == 1 else targets
        normed = self.norm2(queries.float()).type_as(targets)
        targets = targets + self.attn2(normed, encoder_hidden_states, None, None)
        tokens = torch.cat((tokens[:, :num_references], targets), dim=1) if num_references else targets

        normed = (self.norm3(tokens.float()) * (1 + ffn_scale) + ffn_shift).type_as(tokens)
        tokens = (tokens.float() + self.ffn(normed).float() * ffn_gate).type_as(tokens)
        return tokens[:, num_references:], tokens[:, :num_references] if num_references else reference_states


class WorldStereoTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin):
    """Predicts the flow velocity of keyframe latents.

    Args:
        patch_size ... pos_embed_seq_len: as diffusers' `WanTransformer3DModel`.
        controlnet_cfg: sizes of the control branch and switches of the memory branch as in a checkpoint's
            `config.json`: those of `ControlBranch`, `update_ref`, `main_camera_embedding`, `camera_embedding_dim`,
            and in small models `render_prior` (see `render_prior.with_render_prior`) and `layout_channels`. None = no
            branches.
        reference_attention: `full`, `paired` or `correspondence`, see `masks`.
        correspondence_radius: see `masks.Correspondence`.
        correspondence_stride: see `masks.Correspondence`.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: ClassVar = ["patch_embedding", "condition_embedder", "norm"]
    _no_split_modules: ClassVar = ["WorldStereoBlock", "ControlBlock"]
    _repeated_blocks: ClassVar = ["WorldStereoBlock", "ControlBlock"]
    _keep_in_fp32_modules: ClassVar = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    # Neither is used: the first is in some Wan checkpoints, the second in WorldStereo ones with `ref_embedding`.
    _keys_to_ignore_on_load_unexpected: ClassVar = ["norm_added_q", "ref_index_embedding"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        controlnet_cfg: Mapping[str, Any] | None = None,
        reference_attention: str = "full",
        correspondence_radius: float = 2.0,
        correspondence_stride: int = 4,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        self.rope = RotaryEmbedding(attention_head_dim)
        self.target_sequence, self.reference_sequence = TokenSequence(), TokenSequence()
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.condition_embedder = WanTimeTextImageEmbedding(
            dim, freq_dim, dim * 6, text_dim, image_embed_dim=image_dim, pos_embed_seq_len=pos_embed_seq_len
        )
        self.blocks = nn.ModuleList(
            WorldStereoBlock(dim, ffn_dim, num_attention_heads, qk_norm, cross_attn_norm, eps, added_kv_proj_dim)
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

        control = dict(controlnet_cfg or {})
        out_features = self.proj_out.out_features
        self.controlnet = ControlBranch(control, in_channels, dim, patch_size, out_features) if control else None
        self.camera_embedding = None
        if control.get("main_camera_embedding"):
            self.camera_embedding = nn.Sequential(
                nn.Linear(control.get("camera_embedding_dim", 7), dim // 2),
                nn.SiLU(),
                nn.Linear(dim // 2, dim),
                nn.SiLU(),
                nn.Linear(dim, dim),
            )
            for parameter in self.camera_embedding[-1].parameters():
                nn.init.zeros_(parameter)
        prior = control.get("render_prior")
        self.render_prior = None if prior is None else (float(prior[0]), float(prior[1]))
        self.update_references = bool(control.get("update_ref", False))
        self.context_window: ContextWindow | None = None
        self.gradient_checkpointing = False
        self.set_reference_attention(reference_attention)

    @property
    def has_memory_branch(self) -> bool:
        """Whether it is a memory variant, with camera tokens for targets and references."""
        return self.camera_embedding is not None

    def set_reference_attention(self, mode: str, implementation: str = "auto") -> None:
        """Sets how targets attend to references; weights are not changed.

        Args:
            mode: `full`, `paired` or `correspondence`, see `masks`.
            implementation: `auto`, `groups`, `flex` or `dense`, see `attention.make_attention_plan`.

        Raises:
            InputError: there is no such mode or implementation.
        """
        if mode not in MODES:
            raise InputError(f"reference_attention is '{mode}'; choose one of {', '.join(MODES)}.")
        if implementation not in IMPLEMENTATIONS:
            raise InputError(f"The implementation is '{implementation}'; choose one of {', '.join(IMPLEMENTATIONS)}.")
        self.register_to_config(reference_attention=mode)
        self.attention_implementation = implementation

    def set_context_window(self, window: ContextWindow | None, implementation: str = "auto") -> None:
        """Sets which frames attend to which; weights are not changed.

        Args:
            window: the context window; None = all frames attend to all frames.
            implementation: `auto`, `groups`, `flex` or `dense`, see `context_window.make_context_plan`.

        Raises:
            InputError: there is no such implementation, or the model has a control branch, whose references the
                window does not know.
        """
        if implementation not in IMPLEMENTATIONS:
            raise InputError(f"The implementation is '{implementation}'; choose one of {', '.join(IMPLEMENTATIONS)}.")
        if window is not None and self.controlnet is not None:
            raise InputError("A context window is for the plain backbone; this model has a control branch.")
        self.context_window, self.attention_implementation = window, implementation

    def init_control_from_backbone(self) -> None:
        """Initialises the patch embedding of an untrained control branch with the backbone's.

        Raises:
            InputError: there is no control branch, or its embedding has another size.
        """
        if self.controlnet is None or self.config.controlnet_cfg["conv_out_dim"] != self.proj_out.in_features:
            raise InputError("The control branch is missing or its conv_out_dim is not the backbone's width.")
        self.controlnet.controlnet_patch_embedding.load_state_dict(self.patch_embedding.state_dict())

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        render_latent: torch.Tensor | None = None,
        render_mask: torch.Tensor | None = None,
        camera_embedding: torch.Tensor | None = None,
        layout: torch.Tensor | None = None,
        reference_latent: torch.Tensor | None = None,
        ref_index: torch.Tensor | None = None,
        camera_qt: torch.Tensor | None = None,
        camera_qt_ref: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predicts the velocity.

        Args:
            hidden_states: (b, in_channels, F, h, w) noisy latent, mask (1 = known), condition latent.
            timestep: (b,) in 0..1000.
            encoder_hidden_states: (b, text tokens, text_dim), exactly 512 text tokens for
                models with an image embedding.
            encoder_hidden_states_image: (b, image tokens, image_dim) or None.
            render_latent: (b, latent channels, F, h, w) latent of the rendered cloud, for the control branch.
            render_mask: (b, 1, F, H, W) hole mask, 1 = hole, for the control branch.
            camera_embedding: (b, 6, F, H, W) Plücker rays.
            layout: (b, layout_channels, F, h, w) latent and masks of the extrapolated planes, for models with
                `layout_channels`.
            reference_latent: (b, in_channels, R, h, w) latents of the references; None or R = 0 without references.
            ref_index: (R,) integers in 0..F-2; a reference is attached to keyframe `ref_index + 1`.
            camera_qt: (b, F, 7) quaternion (w, x, y, z) and translation of the normalised cameras.
            camera_qt_ref: (b, R, 7) the same of the references.
            reference_points: (b or 1, F, rows, columns, R, 2) see `masks.Correspondence`, for that mode only.
            return_dict: False returns a tuple.

        Returns:
            Velocity (b, out_channels, F, h, w) as `sample`.

        Raises:
            InputError: an input is missing, or its shape does not fit the others.
        """
        reference_frames = check_inputs(
            self.config,
            hidden_states=hidden_states,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_hidden_states_image=encoder_hidden_states_image,
            render_latent=render_latent,
            render_mask=render_mask,
            camera_embedding=camera_embedding,
            layout=layout,
            reference_latent=reference_latent,
            ref_index=ref_index,
            camera_qt=camera_qt,
            camera_qt_ref=camera_qt_ref,
        )
        frames, rows, columns = (n // p for n, p in zip(hidden_states.shape[2:], self.config.patch_size, strict=True))
        device = hidden_states.device
        grid = TokenGrid(frames, rows, columns, reference_frames)

        dtype = self.patch_embedding.weight.dtype
        temb, modulation, text, image = self.condition_embedder(
            timestep,
            encoder_hidden_states.to(dtype),
            None if encoder_hidden_states_image is None else encoder_hidden_states_image.to(dtype),
        )
        modulation = modulation.unflatten(1, (6, -1))
        context = text if image is None else torch.cat((image, text), dim=1)

        control_states: list[torch.Tensor] = []
        if self.controlnet is not None and render_latent is not None and render_mask is not None:
            noisy_and_mask = hidden_states[:, : self.config.in_channels - render_latent.shape[1]]
            volume = render_mask if camera_embedding is None else torch.cat((render_mask, camera_embedding), dim=1)
            control_states = self.controlnet(torch.cat((noisy_and_mask, render_latent), dim=1), volume, temb)

        controlled = bool(control_states)
        tokens = self._embed(hidden_states, camera_qt, rows * columns)
        if controlled and layout is not None:
            assert self.controlnet is not None
            assert self.controlnet.layout_embedding is not None
            tokens = tokens + self.controlnet.layout_embedding(layout.to(tokens.dtype)).flatten(2).transpose(1, 2)
        cos, sin = self.rope(torch.arange(frames, device=device), rows, columns)
        tokens, cos, sin = self.target_sequence(tokens, cos, sin)
        rotary = cos, sin
        references, plan = None, AttentionPlan()
        if reference_frames and reference_latent is not None:
            references = self._embed(reference_latent, camera_qt_ref, rows * columns)
            positions = torch.tensor(reference_frames, device=device)
            cos, sin = self.rope(positions, rows, columns, first_column=columns)
            references, cos, sin = self.reference_sequence(references, cos, sin)
            rotary = torch.cat((cos, rotary[0]), dim=1), torch.cat((sin, rotary[1]), dim=1)
            plan = self._make_plan(grid, reference_points, tokens)
            if plan.first_query:
                plan = replace(plan, first_query=references.shape[1])  # of this process, if there are several
        elif self.context_window is not None:
            plan = make_context_plan(
                self.context_window, grid, implementation=self.attention_implementation, device=device
            )

        for index, block in enumerate(self.blocks):
            arguments = (tokens, references, context, modulation, rotary, plan)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens, references = self._gradient_checkpointing_func(block, *arguments)
            else:
                tokens, references = block(*arguments)
            if self.controlnet is not None and control_states:
                # Removed from the list to free its memory.
                tokens = tokens + self.controlnet.residual(index, control_states.pop(0))

        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        if self.render_prior is None or not controlled or render_latent is None or render_mask is None:
            sample = self._unpatchify(self.proj_out(tokens), grid)
        else:
            assert self.controlnet is not None
            assert self.controlnet.render_head is not None
            correction = self._unpatchify(self.controlnet.render_head(tokens), grid)
            noisy = hidden_states[:, : self.config.out_channels]
            sample = with_render_prior(
                correction, noisy, render_latent, render_mask, timestep / 1000, self.render_prior
            ).type_as(correction)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _embed(self, latent: torch.Tensor, poses: torch.Tensor | None, tokens_per_frame: int) -> torch.Tensor:
        tokens = self.patch_embedding(latent.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if self.camera_embedding is not None and poses is not None:
            offset = self.camera_embedding(poses.to(tokens.dtype))
            tokens = tokens + offset.repeat_interleave(tokens_per_frame, dim=1)
        return tokens.contiguous()

    def _make_plan(self, grid: TokenGrid, points: torch.Tensor | None, tokens: torch.Tensor) -> AttentionPlan:
        mode = self.config.reference_attention
        correspondence = None
        if mode == "correspondence" and points is not None:
            correspondence = Correspondence(
                points.to(tokens.device), self.config.correspondence_radius, self.config.correspondence_stride
            )
        return make_attention_plan(
            mode,
            grid,
            update_references=self.update_references,
            correspondence=correspondence,
            implementation=self.attention_implementation,
            device=tokens.device,
            dtype=tokens.dtype,
            batch=len(tokens),
        )

    def _unpatchify(self, tokens: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        p_t, p_h, p_w = self.config.patch_size
        patches = tokens.unflatten(2, (p_t, p_h, p_w, -1)).unflatten(1, (grid.frames, grid.rows, grid.columns))
        # b, F, rows, columns, p_t, p_h, p_w, c -> b, c, (F p_t), (rows p_h), (columns p_w)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
