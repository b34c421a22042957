"""What the edge node, the cloud service and the toolchain must agree on, and nothing else."""

import os

# ONNX Runtime's official builds report their use to their makers unless this is set before they are loaded.
# What a device saw is its owner's business alone.
os.putenv("ORT_DISABLE_TELEMETRY", "1")
