"""The process and the machine: CPUs, memory, forks, streams and optional packages."""
