"""Starts the edge node: `python -m edge_node`, or `tandem-edge`."""

import argparse
import asyncio
import gc
import logging
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from edge_node.app import HttpServer, create_app
from edge_node.body import Intake
from edge_node.breaker import Breaker, State
from edge_node.cloud_client import CloudClient
from edge_node.dataplane import Dataplane
from edge_node.grpc_api import GrpcServer, Servicer
from edge_node.joint import JointInference
from edge_node.link import Link
from edge_node.logs import configure_logging
from edge_node.metrics import Metrics
from edge_node.model_slot import ModelSlots, load_models
from edge_node.navigator import Navigator
from edge_node.prober import Prober
from edge_node.runner import Runner
from edge_node.settings import Settings, config_path, describe, load_settings, misspelt_variables, tune_grpc
from inference_core.errors import BundleError

VERSION = version("tandem-inference")
_MESSAGE_OVERHEAD = 64 << 10
_log = logging.getLogger("edge_node")


def connect(settings: Settings, metrics: Metrics) -> CloudClient | None:
    """The way to the cloud, or None where the settings name none."""
    peer = settings.cloud
    if not peer:
        _log.info("no cloud: EDGE_CLOUD is empty")
        return None
    metrics.add_peer(peer)

    def changed(state: State) -> None:
        metrics.breaker_changed(peer, state)
        if state is State.OPEN:
            _log.warning("the cloud at %s fails or is silent; leaving it alone for a while", peer)
        elif state is State.CLOSED:
            _log.info("the cloud at %s answers again", peer)

    breaker = Breaker(
        settings.breaker_failures,
        settings.breaker_open_ms / 1000,
        jitter=lambda: random.uniform(0.8, 1.2),  # noqa: S311 - spreads retries, guards nothing
        on_change=changed,
    )
    return CloudClient(
        peer,
        breaker,
        connect_timeout_s=settings.connect_timeout_ms / 1000,
        patience_s=settings.deadline_ms / 1000 / 2,
        max_message_bytes=settings.max_body_bytes + _MESSAGE_OVERHEAD,
        on_connection=lambda connected: metrics.connected.labels(peer).set(connected),
        on_late=metrics.late.labels(peer).inc,
    )


async def serve(settings: Settings) -> int:
    """Run the node until SIGTERM or SIGINT; the exit status."""
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)

    # What it is made of.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics = Metrics(registry)
    slots = ModelSlots()
    cloud = connect(settings, metrics)
    workers = ThreadPoolExecutor(settings.workers, "worker")
    runner = Runner(workers, workers=settings.workers, clock=time.perf_counter)
    link = Link()
    prober = None if cloud is None else Prober(cloud, link)
    metrics.add_link(lambda: link.heard, time.monotonic)
    navigator = Navigator(
        link,
        payload=settings.payload,
        privacy=settings.privacy,
        prober=prober,
        on_estimate=metrics.estimated,
    )
    joint = JointInference(
        cloud,
        metrics,
        runner,
        workers,
        navigator=navigator,
        payload=settings.payload,
        privacy=settings.privacy,
        max_pixels=settings.max_pixels,
        max_inflight=settings.max_inflight,
    )
    dataplane = Dataplane(
        slots, joint, version=VERSION, max_rows=min(settings.max_rows, settings.max_inflight)
    )
    intake = Intake(settings.max_body_bytes, max(settings.max_held_bytes, settings.max_body_bytes))
    app = create_app(slots, joint, dataplane, metrics, intake)
    grpc_server = GrpcServer(Servicer(dataplane, metrics), settings)

    # Listen first, so that health says "loading" instead of refusing; then load; then be ready.
    grace_s = settings.shutdown_ms / 1000
    try:
        http_server = HttpServer(app, settings.host, settings.http_port, grace_s)
        metrics_server, metrics_port = metrics.serve(settings.host, settings.metrics_port)
        await grpc_server.start()
    except (OSError, RuntimeError) as error:
        _log.error(
            "cannot listen on %s: %s; the ports are EDGE_HTTP_PORT, EDGE_GRPC_PORT and EDGE_METRICS_PORT",
            settings.host, error,
        )  # fmt: skip
        return 1
    http_server.start()
    _log.info(
        "node %s listening on %s: http_port=%d grpc_port=%d metrics_port=%d",
        settings.node_id, settings.host, http_server.port, grpc_server.port, metrics_port,
    )  # fmt: skip
    status = 0
    try:
        models = await asyncio.to_thread(load_models, settings)
        for model in models:
            metrics.add_model(model)
        slots.load(models)
        # What is there now stays: the collector need not look through it again in the middle of a request.
        gc.collect()
        gc.freeze()
        if cloud is not None and prober is not None:
            cloud.start()
            prober.start()
        await grpc_server.set_serving(True)
        _log.info("ready: %s", ", ".join(model.name for model in slots.all()))
        await stopping.wait()
    except BundleError as error:
        _log.error("refusing to serve: %s; EDGE_BUNDLES names the folders, from the current one", error)
        status = 1

    # 1. say so, 2. finish what is in flight, 3. let the cloud go, 4. close the rest
    if status == 0:  # else the last line stays the one that says why
        _log.info("stopping: requests in flight get %.1f s", grace_s)
    slots.ready = False
    await grpc_server.set_serving(False)
    await asyncio.gather(http_server.stop(), grpc_server.stop(grace_s))
    if cloud is not None and prober is not None:
        await prober.close()
        await cloud.close()
    metrics_server.shutdown()
    workers.shutdown(cancel_futures=True)
    if status == 0:
        _log.info("stopped")
    return status


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
    except ValueError as error:
        parser.exit(2, f"tandem-edge: {error}\n")
    tune_grpc()
    configure_logging(settings.log_level, settings.log_format)
    for name, setting in misspelt_variables().items():
        _log.warning("%s is set, but is no setting; did you mean %s?", name, setting)
    sys.exit(uvloop.run(serve(settings)))


if __name__ == "__main__":
    main()
