"""Projects target tokens to the references, by the depth that the cloud memory renders."""

from __future__ import annotations

import torch

from worldstereo_ros.utils.errors import InputError


def reference_points(
    depth: torch.Tensor,
    intrinsics: torch.Tensor,
    world_from_camera: torch.Tensor,
    reference_intrinsics: torch.Tensor,
    world_from_reference: torch.Tensor,
    rows: int,
    columns: int,
    *,
    reference_size: tuple[int, int] | None = None,
    reference_depth: torch.Tensor | None = None,
    min_coverage: float = 0.1,
    depth_tolerance: float = 0.05,
) -> torch.Tensor:
    """Computes where the 3-D point of each target token projects to in each reference.

    The point of a token is on the ray through the centre of its patch, at the median of the rendered depth in the
    patch.

    Args:
        depth: (F, H, W) metres along the optical axis, 0 = nothing rendered; H and W are multiples of rows, columns.
        intrinsics: (F, 3, 3) or (3, 3) in pixels of `depth`, pixel centres at integers.
        world_from_camera: (F, 4, 4).
        reference_intrinsics: (R, 3, 3) or (3, 3) in pixels of the references.
        world_from_reference: (R, 4, 4).
        rows: rows of tokens, of targets and references.
        columns: columns of tokens.
        reference_size: (height, width) of the references in pixels; None = that of `depth`.
        reference_depth: (R, height, width) metres, 0 = unknown, to detect occlusion; None = no occlusion.
        min_coverage: fraction of a patch that must be rendered.
        depth_tolerance: relative distance behind `reference_depth` from which a point is occluded.

    Returns:
        (F, rows, columns, R, 2) float32 row and column, in tokens of the reference. NaN if the point is unknown (less
        than `min_coverage` of the patch is rendered); infinity if it is behind the reference camera or occluded. A
        point outside the reference's image has coordinates outside the grid.

    Raises:
        InputError: the image does not divide into the tokens.
    """
    frames, height, width = depth.shape
    if height % rows or width % columns:
        raise InputError(f"Depth of {height}x{width} pixels does not divide into {rows}x{columns} tokens.")
    patch_h, patch_w = height // rows, width // columns
    ref_h, ref_w = reference_size or (height, width)
    device, dtype = depth.device, torch.float64 if depth.device.type == "cpu" else torch.float32
    K, T = (t.to(device, dtype) for t in (intrinsics, world_from_camera))
    K_ref, T_ref = (t.to(device, dtype) for t in (reference_intrinsics, world_from_reference))
    K_ref = K_ref.expand(len(T_ref), 3, 3)

    patches = depth.to(dtype).reshape(frames, rows, patch_h, columns, patch_w).transpose(2, 3).flatten(3)
    rendered = patches > 0
    z = torch.where(rendered, patches, torch.nan).nanmedian(dim=-1).values
    z = torch.where(rendered.float().mean(dim=-1) < min_coverage, torch.nan, z)

    y = (torch.arange(rows, device=device, dtype=dtype) + 0.5) * patch_h - 0.5
    x = (torch.arange(columns, device=device, dtype=dtype) + 0.5) * patch_w - 0.5
    pixels = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns), torch.ones_like(z[0])), dim=-1)
    rays = torch.einsum("fij,hwj->fhwi", torch.linalg.inv(K).expand(frames, 3, 3), pixels)
    points = torch.einsum("fij,fhwj->fhwi", T[:, :3, :3], rays * z[..., None]) + T[:, None, None, :3, 3]

    reference_from_world = torch.linalg.inv(T_ref)
    in_reference = (
        torch.einsum("rij,fhwj->fhwri", reference_from_world[:, :3, :3], points) + reference_from_world[:, :3, 3]
    )
    projected = torch.einsum("rij,fhwrj->fhwri", K_ref, in_reference)
    depth_in_reference = in_reference[..., 2]
    uv = projected[..., :2] / depth_in_reference.clamp(min=1e-6)[..., None]
    hidden = depth_in_reference <= 1e-6
    if reference_depth is not None:
        hidden |= _occluded(uv, depth_in_reference, reference_depth.to(device, dtype), depth_tolerance)
    out = torch.stack(
        (
            (uv[..., 1] + 0.5) * (rows / ref_h) - 0.5,
            (uv[..., 0] + 0.5) * (columns / ref_w) - 0.5,
        ),
        dim=-1,
    )
    out = torch.where(hidden[..., None], torch.inf, out)
    return torch.where(z.isnan()[..., None, None], torch.nan, out).float()


def _occluded(uv: torch.Tensor, z: torch.Tensor, depth: torch.Tensor, tolerance: float) -> torch.Tensor:
    """Whether points at pixels `uv` and depth `z` are behind the surface in the depth images."""
    references, height, width = depth.shape
    column, row = (uv[..., i].round().nan_to_num(-1, -1, -1) for i in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.arange(references, device=uv.device).expand(column.shape)
    surface = depth[index, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
    return inside & (surface > 0) & (z > surface * (1 + tolerance))
