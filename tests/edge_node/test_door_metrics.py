"""What the metrics of the doors show, and that labels go with the keys that they name."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from edge_node.door_metrics import DoorMetrics
from inference_core.certificate import Files, read
from tests.certificates import Site


def test_series_come_and_go_with_the_keys() -> None:
    registry = CollectorRegistry()
    metrics = DoorMetrics(registry)

    def value(key: str, outcome: str) -> float | None:
        return registry.get_sample_value("tandem_key_requests_total", {"key": key, "outcome": outcome})

    metrics.show_keys(["camera", "scale"])
    assert value("camera", "admitted") == 0
    assert value("unknown", "unauthenticated") == 0
    metrics.count("camera", "admitted")
    metrics.show_keys(["camera"])
    assert value("camera", "admitted") == 1
    assert value("scale", "admitted") is None
    metrics.count("camera", "admitted")
    assert value("camera", "admitted") == 2


def test_ends_of_certificates_are_shown_for_each_side(tmp_path: Path) -> None:
    registry, site = CollectorRegistry(), Site(tmp_path)
    metrics = DoorMetrics(registry)
    server, client = read(site.cloud()), read(site.edge("edge-1"))
    metrics.certified(read(Files(site.folder / "cloud.pem", site.folder / "cloud.key", None)))
    metrics.certified_for_the_cloud(client)
    assert server.own is not None
    assert client.own is not None
    assert client.others is not None
    for which, validity in (
        ("server", server.own),
        ("client", client.own),
        ("cloud_authority", client.others),
    ):
        name = "tandem_certificate_expiry_timestamp_seconds"
        assert registry.get_sample_value(name, {"which": which}) == validity.ends
