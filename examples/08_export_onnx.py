#!/usr/bin/env python3
"""Export the control branch of a checkpoint to ONNX and compare it with torch.

python examples/08_export_onnx.py [CHECKPOINT]

Needs the extra `export` (onnx, onnxruntime, onnxscript). A pipeline runs its control branch in onnxruntime with
`load_pipeline(model, control_backend="onnxruntime")`, a node with the parameter `control_backend`; both export by
themselves. The result is in example_out/export/.
"""

import sys
from pathlib import Path

from worldstereo_ros.export.metadata import read_metadata
from worldstereo_ros.export.onnx import export_control
from worldstereo_ros.export.verify import verify
from worldstereo_ros.models.checkpoints.hub import find_checkpoint
from worldstereo_ros.models.checkpoints.loading import load_transformer

OUT = Path("example_out/export")


def main() -> None:
    """Export, read the metadata back, verify."""
    OUT.mkdir(parents=True, exist_ok=True)
    model = sys.argv[1] if len(sys.argv) > 1 else "small"
    control = load_transformer(find_checkpoint(model)).controlnet
    if control is None:
        sys.exit(f"{model} has no control branch.")

    exported = export_control(control, OUT / "control.onnx")
    metadata = read_metadata(exported.path)
    print(f"exported {metadata['layers']} blocks of width {metadata['dim']}: {exported.size / 2**20:.1f} MiB")

    passed = True
    for result in verify(exported, control):  # at sizes other than the traced one
        passed &= result.passes(metadata["dtype"])
        print(
            f"  batch, frames, rows, columns {result.size}: largest difference {result.max_abs_error:.1e} "
            f"of {result.max_abs_value:.0f}; "
            f"torch {1000 * result.torch_seconds:.0f} ms, onnxruntime {1000 * result.onnxruntime_seconds:.0f} ms"
        )
    print("onnxruntime agrees with torch" if passed else "onnxruntime and torch DIFFER")
    print(f"wrote {exported.path}")


if __name__ == "__main__":
    main()
