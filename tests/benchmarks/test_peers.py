"""Peers: one that cannot be installed or started is said, with the reason."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.models import Served
from benchmarks.processes import Cores, Failed

CORE = Cores.of_this_machine().server


@pytest.fixture
def model(tmp_path: Path) -> Served:
    sample = np.zeros((1, 2), np.float32)
    served = Served("net", "fp32", tmp_path, sample, sample)
    served.__dict__["file"] = tmp_path / "net.onnx"
    return served


def test_what_cannot_be_installed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    absent = peers.Peer((f"{tmp_path}/nothing-here.whl",), (), ())
    monkeypatch.setitem(peers.PEERS, "Absent 1.0", absent)
    said: list[str] = []
    missing = peers.install(["Absent 1.0"], said.append)
    assert list(missing) == ["Absent 1.0"]
    assert missing["Absent 1.0"].startswith("cannot be installed: ")
    assert "nothing-here.whl" in missing["Absent 1.0"]
    assert said[0] == "installing Absent 1.0"
    assert peers.install(["Absent 1.0"], said.append) == missing  # tried again, not taken for done


def test_what_cannot_be_started_says_why(
    tmp_path: Path, model: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENTS", tmp_path)
    with pytest.raises(Failed, match="No such file"):
        peers.start("MLServer 1.7", model, CORE, tmp_path)


def test_every_peer_is_pinned() -> None:
    for name, peer in peers.PEERS.items():
        assert all("==" in package for package in peer.packages), name
        assert peer.packages[0].partition("==")[2].startswith(name.rstrip(")").split()[-1])
        assert peer.makes
