"""Read and write files safely: regular files, files opened once, locks, atomic folders, strict JSON."""
