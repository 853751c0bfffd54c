"""What vitdeploy asks of the process and the machine: CPUs, memory, forks, streams and optional packages."""
