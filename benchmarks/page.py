"""`docs/benchmarks.md`: each benchmark owns one section of it, and what machine the figures are from."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

PAGE = Path("docs/benchmarks.md")
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_TITLE = "# Benchmarks\n"


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text`, Markdown, in the place of the section `name` of the page `path`, and leave all else.

    A section lies between `<!-- name:begin -->` and `<!-- name:end -->`. It is added at the end of a page
    that does not have it, and the page is made where there is none. Raises `ValueError` for a name that
    is not lower case letters, digits and hyphens, for a text that holds a marker, and for a page whose
    markers do not come once each and in order.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"section: {name!r} must match {_NAME.pattern}")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin in text or end in text:
        raise ValueError(f"section {name!r}: its text holds its own marker")
    page = path.read_text(encoding="utf-8") if path.exists() else _TITLE
    section = f"{begin}\n{text.strip()}\n{end}"
    counts = page.count(begin), page.count(end)
    if counts == (0, 0):
        page = f"{page.rstrip()}\n\n{section}\n"
    elif counts == (1, 1) and page.index(begin) < page.index(end):
        before, _, rest = page.partition(begin)
        page = before + section + rest.partition(end)[2]
    else:
        raise ValueError(f"{path}: the markers of section {name!r} must come once each, {begin} before {end}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def machine() -> str:
    """One line about this machine: processor, cores, memory, and the versions that figures depend on."""
    cores = len(os.sched_getaffinity(0))
    parts = [f"{cores} core{'' if cores == 1 else 's'} of {_processor()}"]
    if widest := _widest():
        parts.append(f"with {widest}")
    if memory := _memory_gib():
        parts.append(f"and {memory:.0f} GiB")
    runs = f"Python {platform.python_version()}, ONNX Runtime {version('onnxruntime')}"
    return f"{' '.join(parts)}, {platform.system()} {platform.release().partition('-')[0]}, {runs}"


def _facts() -> dict[str, str]:
    """What `/proc/cpuinfo` says of the first core, where there is one."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _processor() -> str:
    facts = _facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}{', virtual' if 'hypervisor' in facts.get('flags', '') else ''})"


def _widest() -> str:
    """The instructions that INT8 arithmetic is fast or slow by."""
    flags = _facts().get("flags", "").split()
    for flag, name in (("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX VNNI"), ("avx2", "AVX2")):
        if flag in flags:
            return name
    return ""


def _memory_gib() -> float:
    path = Path("/proc/meminfo")
    found = re.search(r"MemTotal:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) / 2**20 if found else 0.0
