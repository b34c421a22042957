"""The machine that figures are from: its processor, and the cores that this process may use."""

import os
import platform
from pathlib import Path

_FACTS = Path("/proc/cpuinfo")


def cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name in one line, or its architecture where nobody tells the name."""
    facts = _FACTS.read_text(encoding="utf-8", errors="replace") if _FACTS.exists() else ""
    return processor_in(facts) or platform.processor() or platform.machine()


def processor_in(facts: str) -> str:
    """The name of the first processor in `facts`, the text of `/proc/cpuinfo`; empty where there is none."""
    for line in facts.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return ""
