"""Who may call by the URIs of a certificate, and what lists make of it."""

from pathlib import Path

import pytest

from cloud_service.nodes import Nodes, read_revoked
from inference_core.certificate import node_uri
from inference_core.errors import Forbidden

ONE, TWO = node_uri("edge-1"), node_uri("edge-2")


def test_the_node_is_the_one_that_the_uri_names() -> None:
    assert Nodes().admit([ONE]) == "edge-1"
    assert Nodes().admit(["https://example.org", ONE]) == "edge-1"


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://example.org"],
        [ONE, TWO],
        ["spiffe://tandem/cloud/edge-1"],
        ["spiffe://tandem/edge/"],
        ["spiffe://other/edge/edge-1"],
        [ONE + "\n"],
        [ONE + "/more"],
        ["x" + ONE],
    ],
)
def test_a_certificate_that_names_not_exactly_one_node_is_refused(uris: list[str]) -> None:
    refused: list[str] = []
    with pytest.raises(Forbidden, match="URI names like spiffe://tandem/edge/ID, it must have one"):
        Nodes(on_refused=refused.append).admit(uris)
    assert refused == ["no_name"]


def test_lists_say_who_may_and_who_may_not() -> None:
    refused: list[str] = []
    nodes = Nodes(["edge-1", "edge-3"], ["edge-3"], refused.append)
    assert nodes.admit([ONE]) == "edge-1"
    with pytest.raises(Forbidden, match="node 'edge-2': is none of CLOUD_NODES"):
        nodes.admit([TWO])
    with pytest.raises(Forbidden, match="node 'edge-3': its certificate is revoked"):
        nodes.admit([node_uri("edge-3")])
    assert refused == ["not_listed", "revoked"]


def test_a_new_list_takes_the_place_of_the_old(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes(revoked=["edge-1"])
    for _ in range(3):
        with pytest.raises(Forbidden):
            nodes.admit([ONE])
    assert len(caplog.records) == 1, "who is refused is said once"
    nodes.revoke(["edge-2"])
    assert nodes.admit([ONE]) == "edge-1"
    with pytest.raises(Forbidden):
        nodes.admit([TWO])


def test_the_file_has_one_id_a_line(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("# gone\nedge-1\n\n  edge-2  # stolen\n")
    assert read_revoked(path) == {"edge-1", "edge-2"}


def test_a_line_that_is_no_id_is_named(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("edge-1\nedge 2\n")
    with pytest.raises(ValueError, match=r"revoked, line 2: node id 'edge 2'"):
        read_revoked(path)
    with pytest.raises(ValueError, match="nowhere"):
        read_revoked(tmp_path / "nowhere")
