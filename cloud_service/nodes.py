"""Which edge nodes may call: all that the authority has certified, or those of a list, less those revoked."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from inference_core.certificate import NODE_URI, node_uri
from inference_core.errors import Forbidden

REASONS = ("no_name", "not_listed", "revoked")
_log = logging.getLogger(__name__)


class Nodes:
    """The edge nodes that may call. `revoked` may be another set at any time."""

    def __init__(
        self,
        listed: Collection[str] = (),
        revoked: Collection[str] = (),
        on_refused: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`listed` are the ids of those that may, empty for all; `on_refused` is told of each refusal: one of
        `REASONS`."""
        self._listed = frozenset(listed)
        self._revoked = frozenset(revoked)
        self._on_refused = on_refused
        self._told: set[str] = set()

    def revoke(self, revoked: Collection[str]) -> None:
        """From now on these may not call, and whoever was revoked before may again."""
        self._revoked = frozenset(revoked)
        self._told.clear()

    def admit(self, uris: Collection[str]) -> str:
        """The id of the node whose certificate holds these URIs; `Forbidden` when it may not call."""
        nodes = [match.group(1) for match in map(NODE_URI.fullmatch, uris) if match]
        if len(nodes) != 1:
            words = f"the certificate has {len(nodes)} URI names like {node_uri('ID')}, it must have one"
            raise self._refusal("no_name", "", words)
        (node,) = nodes
        if node in self._revoked:
            raise self._refusal("revoked", node, f"node {node!r}: its certificate is revoked")
        if self._listed and node not in self._listed:
            raise self._refusal("not_listed", node, f"node {node!r}: is none of CLOUD_NODES")
        return node

    def _refusal(self, reason: str, node: str, words: str) -> Forbidden:
        self._on_refused(reason)
        if node not in self._told:
            self._told.add(node)
            _log.warning("refusing a caller: %s", words)
        return Forbidden(words)


def read_revoked(path: Path) -> frozenset[str]:
    """The node ids in a file, one a line, # for comments. `ValueError` names the file and the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    found = set()
    for number, line in enumerate(lines, 1):
        if node := line.partition("#")[0].strip():
            try:
                node_uri(node)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            found.add(node)
    return frozenset(found)
