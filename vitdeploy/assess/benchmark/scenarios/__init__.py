"""Measure under load, in MLPerf's scenarios: single-stream, multi-stream, offline and server."""
