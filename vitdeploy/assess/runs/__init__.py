"""Artifacts and backends to assess, their open runtimes, and batches of images."""
