"""As much of PromQL's grammar as tells which series a query reads, and by which labels."""

import re
from dataclasses import dataclass

_KEYWORDS = {"and", "or", "unless", "bool", "offset"}
_STRING = r'"(?:[^"\\]|\\.)*"'
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(rf"([a-zA-Z_:][\w:]*)\s*\{{((?:[^}}\"]|{_STRING})*)\}}")
_MATCHER = re.compile(rf"(\w+)\s*(?:=~|!~|!=|=)\s*{_STRING}")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")


@dataclass(frozen=True)
class Reads:
    """The metrics of a query, each with the labels it is selected by, and the labels of its groupings."""

    metrics: dict[str, set[str]]
    grouping: set[str]


def reads(expr: str) -> Reads:
    """What `expr` reads."""
    grouping = {
        label.strip() for found in _GROUPING.finditer(expr) for label in found[1].split(",") if label.strip()
    }
    rest = _GROUPING.sub(" ", expr)
    metrics: dict[str, set[str]] = {}
    for found in _SELECTOR.finditer(rest):
        metrics.setdefault(found[1], set()).update(_MATCHER.findall(found[2]))
    rest = re.sub(rf"\[[^\]]*\]|{_STRING}", " ", _SELECTOR.sub(" ", rest))
    for found in _NAME.finditer(rest):
        is_function = rest[found.end() :].lstrip().startswith("(")
        is_number = found.start() > 0 and rest[found.start() - 1].isalnum()
        if not is_function and not is_number and found[0] not in _KEYWORDS:
            metrics.setdefault(found[0], set())
    return Reads(metrics, grouping)
