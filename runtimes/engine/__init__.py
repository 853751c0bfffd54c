"""Run TensorRT engines: load, compatibility, execution plan and CUDA memory."""
