"""Export of model parts to ONNX, and inference of exported parts by onnxruntime or TensorRT."""
