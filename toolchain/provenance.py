"""Where a bundle comes from: versions, machine, seed and targets, for the report."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolchain.recipe import Recipe

_LIBRARIES = ("tandem-inference", "onnxruntime", "onnx", "onnxslim", "numpy", "scipy")


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Plain values; `vnni` says whether the processor multiplies bytes in one step, None where unknown."""
    return {
        "versions": {name: version(name) for name in _LIBRARIES},
        "machine": platform.machine(),
        "vnni": has_vnni(),
        "seed": recipe.seed,
        "targets": asdict(recipe.targets),
    }


def has_vnni() -> bool | None:
    """Whether the processor multiplies bytes in one step, or None where that cannot be told."""
    info = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not info.exists():
        return None
    return "vnni" in info.read_text(encoding="utf-8", errors="replace")
