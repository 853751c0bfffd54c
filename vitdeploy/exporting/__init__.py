"""The export workflow: options, artifacts, engines, calibration and validation."""
