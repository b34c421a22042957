"""Samples worth learning from: kept while the cloud is away, stored there once, and nothing else goes up."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import SURE, SURE_BUT_WRONG, UNSURE, picture, pixels, write_bundle
from tests.edge_node.node import noise
from tests.joint.device import Device
from tests.joint.proxy import Proxy
from tests.joint.services import Service, Services, eventually, free_port

TENSOR = "application/octet-stream"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "colors")


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query of a service's database gives, while the service has it."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def depth(edge: Service) -> float:
    return edge.metrics().total("tandem_outbox_depth")


def test_an_outage_is_learned_from(services: Services, bundle: Path, tmp_path: Path) -> None:
    port, kept, stored = free_port(), tmp_path / "outbox.db", tmp_path / "samples.db"
    settings: dict[str, Any] = {
        "outbox": kept,
        "outbox_share": 1,
        "confident_audit_rate": 1,
        "deadline_ms": 5000,
    }
    edge = services.edge(bundle, port, node_id="node-7", **settings).wait_ready()
    device = Device(edge.ports[0])

    assert device.predict(picture(UNSURE)).who == ("edge_fallback", "cloud_unreachable")
    assert device.predict(picture(SURE)).who == ("edge", "confident")
    assert device.predict(picture(SURE_BUT_WRONG)).who == ("edge", "confident")
    assert device.predict(picture(UNSURE), mode="edge").who == ("edge", "mode")
    answer = device.predict(picture(SURE), threshold=0.5, keep=True)
    key = answer.body["kept"]
    assert rows(kept, f"SELECT reason, promised FROM samples WHERE key = '{key}'") == [("requested", 1)]
    assert 0 <= answer.body["timings_ms"]["keep"] < answer.body["timings_ms"]["total"]
    eventually(lambda: depth(edge) == 5, 5, "all five are on disk")
    assert edge.metrics().total("tandem_outbox_oldest_age_seconds") > 0

    # What was kept is still there after a kill; then the cloud comes, and gets each once.
    edge.kill()
    cloud = services.cloud(bundle, grpc_port=port, samples=stored).wait_ready()
    edge = services.edge(bundle, port, node_id="node-7", **settings).wait_ready()
    eventually(lambda: edge.metrics().total("tandem_outbox_forwarded_total") == 5, 10, "all are forwarded")
    assert depth(edge) == edge.metrics().total("tandem_outbox_bytes") == 0
    assert edge.metrics().by("tandem_audits_total", "agree") == {("true",): 1, ("false",): 1}
    found = rows(stored, "SELECT reason, node, edge_label, label FROM samples ORDER BY number")
    assert sorted(found) == [
        ("audit", "node-7", "red", "blue"),
        ("audit", "node-7", "red", "red"),
        ("fallback", "node-7", "red", "blue"),
        ("low_confidence", "node-7", "red", "blue"),
        ("requested", "node-7", "red", "red"),
    ]
    assert rows(stored, "SELECT count(*) FROM samples WHERE key = '" + key + "'") == [(1,)]
    images = {data for (data,) in rows(stored, "SELECT data FROM tensors")}
    assert images == {picture(UNSURE), picture(SURE), picture(SURE_BUT_WRONG)}
    assert cloud.metrics().total("tandem_samples_stored_total") == 5
    assert rows(kept, "SELECT * FROM samples") == []


MODES = ("edge", "cascade", "cloud", "split", "auto")


def test_privacy_holds_on_the_wire_in_every_mode_and_for_the_outbox(
    services: Services, bundle: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "samples.db"
    cloud = services.cloud(bundle, samples=stored).wait_ready()
    port = cloud.ports[1]
    image, tensor = noise(), np.random.default_rng(4).random(pixels(SURE).shape, dtype=np.float32).tobytes()
    with (
        Proxy(port, record=True) as any_,
        Proxy(port, record=True) as features,
        Proxy(port, record=True) as no,
    ):
        proxies = {"any": any_, "features-only": features, "never-leaves-the-edge": no}
        edges = {
            privacy: services.edge(
                bundle, proxy.port, privacy, privacy=privacy, node_id=privacy, outbox_share=1,
                outbox=tmp_path / f"{privacy}.db", confident_audit_rate=1, deadline_ms=5000,
            )
            for privacy, proxy in proxies.items()
        }  # fmt: skip
        kept = {privacy: keep_all(edge, image, tensor) for privacy, edge in edges.items()}
        for privacy in ("any", "features-only"):
            assert kept[privacy] == 2 * len(MODES)
            edge, number = edges[privacy], kept[privacy]
            eventually(partial(has_forwarded, edge, number), 20, f"{privacy}: all is forwarded")
        assert kept["never-leaves-the-edge"] == 0

    def seen(data: bytes, privacy: str) -> bool:
        """Whether any 16 bytes of it went up."""
        up = bytes(proxies[privacy].went_up)
        return any(data[at : at + 16] in up for at in range(0, len(data) - 16, 8))

    assert {p: (seen(image, p), seen(tensor, p)) for p in proxies} == {
        "any": (True, True), "features-only": (False, False), "never-leaves-the-edge": (False, False),
    }  # fmt: skip
    assert rows(stored, "SELECT DISTINCT node, form FROM samples ORDER BY node, form") == [
        ("any", "image"), ("any", "tensor"), ("features-only", "features.pixels"),
    ]  # fmt: skip
    assert edges["never-leaves-the-edge"].metrics().total("tandem_outbox_kept_total") == 0


def keep_all(edge: Service, image: bytes, tensor: bytes) -> int:
    """Ask in every mode for an image and a tensor to be kept; how many were."""
    device = Device(edge.wait_ready().ports[0])
    eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 10, "it is connected")
    answers = [
        device.predict(body, kind, mode=mode, keep=True)
        for mode in MODES
        for body, kind in ((image, "image/png"), (tensor, TENSOR))
    ]
    assert {answer.status for answer in answers} == {200}
    return sum(answer.body["kept"] is not None for answer in answers)


def has_forwarded(edge: Service, number: int) -> bool:
    return edge.metrics().total("tandem_outbox_forwarded_total") >= number
