"""Selected artifacts and backends, their open runtimes, and batches of images."""
