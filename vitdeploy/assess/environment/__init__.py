"""Describe this machine and installation: CPU, GPUs, backends, extras, licenses and caches."""
