"""The bundle: a folder of checkpoint files and artifacts, with checksums in its manifest."""
