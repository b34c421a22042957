"""The cloud lets each connection go after 30 s, so that edges find new replicas; no request pays for that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.joint.device import Load
from tests.joint.proxy import Proxy
from tests.joint.services import Services, eventually

AGE_S = 30.0  # give or take a tenth, which gRPC draws for each connection
DEADLINE_MS = 250


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_request_falls_back_when_the_connection_is_replaced(
    services: Services, tmp_path: Path, note: Callable[..., None]
) -> None:
    bundle = write_bundle(tmp_path / "colors")
    cloud = services.cloud(bundle).wait_ready()
    with Proxy(cloud.ports[1]) as proxy:
        edge = services.edge(bundle, proxy.port).wait_ready()
        eventually(lambda: edge.metrics().total("tandem_cloud_connected") == 1, 5, "the edge is connected")
        first = proxy.accepted
        with Load(edge.ports[0], (picture(UNSURE), picture(SURE)), rate=60, deadline_ms=DEADLINE_MS) as load:
            eventually(lambda: proxy.accepted > first, AGE_S * 1.2 + 5, "the connection is replaced")
            load.go_on(1.0)
        note(requests=str(len(load.answers)), latest_after_deadline_ms=load.answers.latest_ms())
    assert load.answers.who.keys() == {("edge", "confident"), ("cloud", "low_confidence")}
