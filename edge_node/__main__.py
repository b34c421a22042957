"""Starts the edge node: `python -m edge_node`, or `tandem-edge`."""

import signal

if __name__ == "__main__":  # Ctrl-C while the imports below are read ends the process without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import logging
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from edge_node.admission import Admission, create_limit
from edge_node.app import bounds, create_app
from edge_node.dataplane import Dataplane
from edge_node.door_metrics import DoorMetrics
from edge_node.doors import Doors
from edge_node.exposure import check
from edge_node.grpc_api import GrpcServer, Servicer
from edge_node.joint import JointInference
from edge_node.learning import Learning
from edge_node.link import Link
from edge_node.link_metrics import LinkMetrics
from edge_node.loader import Loader
from edge_node.logs import configure_logging
from edge_node.metrics import Metrics
from edge_node.model_slot import ModelSlots
from edge_node.navigator import Navigator
from edge_node.operation import add_actions
from edge_node.prober import Prober
from edge_node.reload import Reload
from edge_node.runner import Runner
from edge_node.settings import Settings, config_path, describe, load_settings, misspelt_variables, tune_grpc
from edge_node.uplink import allow, connect
from inference_core.body import Intake
from inference_core.connections import Connections
from inference_core.descriptors import connections_within
from inference_core.errors import BundleError
from inference_core.http_server import HttpServer
from inference_core.loop_lag import LoopLag
from inference_core.management import Management
from inference_core.signals import CLOSE_S, Signals, end, together, within
from inference_core.vitals import Vitals
from inference_core.watchdog import Watchdog
from inference_core.workers import Workers

VERSION = version("tandem-inference")
_log = logging.getLogger("edge_node")


async def serve(settings: Settings) -> int:
    """Run the node until SIGTERM or SIGINT; the exit status."""
    signals = Signals()
    room = connections_within(settings.max_connections, "EDGE_MAX_CONNECTIONS")
    settings = settings.model_copy(update={"max_connections": room})

    # What it is made of.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics, link_metrics, vitals = Metrics(registry), LinkMetrics(registry), Vitals(registry)
    lag = LoopLag(vitals.loop_lag.observe)
    vitals.recent_lag.set_function(lambda: lag.recent_s)
    loop = asyncio.get_running_loop()
    vitals.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
    watchdog = Watchdog(settings.run_limit_ms / 1000, vitals.happened)
    doors = Doors(settings, DoorMetrics(registry))
    slots = ModelSlots()
    allowance = allow(settings, link_metrics)
    cloud = connect(settings, allowance, link_metrics, doors.cloud_tls)
    workers = Workers(settings.workers, "worker")
    watchdog.on_stuck(workers.give_up)
    runner = Runner(workers, workers=settings.workers, clock=time.monotonic)
    link = Link()
    prober = None if cloud is None else Prober(cloud, link)
    link_metrics.add_link(lambda: link.heard, time.monotonic)
    navigator = Navigator(
        link,
        payload=settings.payload,
        privacy=settings.privacy,
        prober=prober,
        on_estimate=link_metrics.estimated,
    )
    learning = Learning(settings, registry)
    if cloud is not None:
        learning.forward(cloud, link, slots, runner, workers)
    admission = Admission(
        runner,
        max_inflight=settings.max_inflight,
        limit=create_limit(settings),
        clock=time.monotonic,
        on_shed=metrics.declined,
        lag=lambda: lag.recent_s,
        reserve_s=settings.reserve_ms / 1000,
    )
    joint = JointInference(
        cloud,
        metrics,
        runner,
        workers,
        navigator=navigator,
        keeper=learning.keeper,
        payload=settings.payload,
        privacy=settings.privacy,
        max_pixels=settings.max_pixels,
        admission=admission,
        reserve_s=settings.reserve_ms / 1000,
        lag=lambda: lag.recent_s,
    )
    dataplane = Dataplane(
        slots, joint, version=VERSION, max_rows=min(settings.max_rows, settings.max_inflight)
    )
    intake = Intake(settings.max_body_bytes, max(settings.max_held_bytes, settings.max_body_bytes))
    app = create_app(slots, joint, dataplane, metrics, intake, doors.keyring)
    grpc_server = GrpcServer(Servicer(dataplane, metrics, intake, doors.keyring), settings, doors.tls)

    # Listen first, so that health says "loading" instead of refusing; then load; then be ready.
    grace_s = settings.shutdown_ms / 1000
    try:
        refused = metrics.refused
        connections = Connections(
            bounds(settings), lambda status: refused.labels("device", status).inc(), vitals.displaced.inc
        )
        vitals.show_connections(connections)
        http_server = HttpServer(
            app, settings.host, settings.http_port, grace_s, connections, doors.http_context
        )
        management = Management(
            registry, settings.metrics_host, settings.metrics_port, settings.admin_token.get_secret_value()
        )
        await grpc_server.start()
    except (OSError, RuntimeError) as error:
        _log.error(
            "cannot listen on %s: %s; the ports are EDGE_HTTP_PORT, EDGE_GRPC_PORT and EDGE_METRICS_PORT",
            settings.host, error,
        )  # fmt: skip
        return 1
    loader = Loader(settings, watchdog)
    reload = Reload(slots, loader.load, metrics, vitals, on_swap=navigator.keep)
    add_actions(management, reload, allowance)
    for part in (http_server, doors, management, watchdog, lag, learning):
        part.start()
    _log.info(
        "node %s listening on %s: http_port=%d grpc_port=%d metrics_port=%d",
        settings.node_id, settings.host, http_server.port, grpc_server.port, management.port,
    )  # fmt: skip
    status = 0
    try:
        names = await signals.unless_stopping(reload.start())
        if cloud is not None and prober is not None:
            cloud.start()
            prober.start()
        if names:
            learning.ready(names)
            await grpc_server.set_serving(True)
            _log.info("ready: %s", ", ".join(names))
            signals.on_hangup(reload.ask)
        await signals.stopping.wait()
    except BundleError as error:
        _log.error("refusing to serve: %s; EDGE_BUNDLES names the folders, from the current one", error)
        status = 1

    # 1. say so, and be seen saying it
    tell = _log.info if status == 0 else _log.debug  # the last line stays the one that says why
    tell("stopping: requests in flight get %.1f s", grace_s)
    slots.ready = False
    loader.close()
    await grpc_server.set_serving(False)
    await asyncio.sleep(settings.drain_ms / 1000 if status == 0 else 0)
    # 2. finish what is in flight, 3. let the cloud go, 4. close the rest: each within a limit
    requests = together(http_server.stop(), grpc_server.stop(grace_s))
    await within(grace_s + CLOSE_S, "requests in flight", requests)
    await within(CLOSE_S, "the forwarder", learning.stop_forwarding())
    await within(CLOSE_S, "the outbox", learning.close(CLOSE_S))
    if cloud is not None and prober is not None:
        await within(CLOSE_S, "the connection to the cloud", together(prober.close(), cloud.close()))
    await within(CLOSE_S, "the watch over keys and certificates", doors.close())
    workers.shutdown(cancel_futures=True)
    lag.stop()
    watchdog.stop()
    management.stop()
    tell("stopped")
    return end(status, orderly=not watchdog.under_way)


def main() -> None:
    """Read arguments and settings, then serve. Exit status 2 for wrong settings, 1 for a bad bundle."""
    parser = argparse.ArgumentParser(
        prog="tandem-edge",
        description="The edge node: answers devices by itself when it can be trusted, else asks the cloud.",
        epilog="settings, from the environment, else from the file, else the default:\n" + describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="TOML file of settings, named as below without EDGE_")
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config or config_path())
        configure_logging(settings.log_level, settings.log_format)
        check(settings)
    except ValueError as error:
        parser.exit(2, f"tandem-edge: {error}\n")
    tune_grpc()
    os.umask(0o077)  # samples are nobody else's to read
    for name, setting in misspelt_variables().items():
        _log.warning("%s is set, but is no setting; did you mean %s?", name, setting)
    sys.exit(uvloop.run(serve(settings)))


if __name__ == "__main__":
    main()
