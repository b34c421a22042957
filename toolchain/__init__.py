"""Offline: from trained networks and images to a bundle, and what shows a bundle at work."""

import inference_core  # noqa: F401 - before ONNX Runtime, which it keeps from reporting
