"""What the edge node, the cloud service and the toolchain must agree on, and nothing else."""
