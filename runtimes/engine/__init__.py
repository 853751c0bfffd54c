"""Run TensorRT engines: loading, compatibility check, execution plans and CUDA memory."""
