"""Starts the cloud service: `python -m cloud_service`, or `tandem-cloud`."""

import signal

if __name__ == "__main__":  # Ctrl-C while the imports below are read ends the process without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from cloud_service.admin import bounds, create_admin
from cloud_service.decoders import Decoders
from cloud_service.descriptions import create_catalogue
from cloud_service.doors import Doors
from cloud_service.exposure import check
from cloud_service.fleet import Fleet
from cloud_service.grpc_server import GrpcServer
from cloud_service.loader import Loader
from cloud_service.logs import configure_logging
from cloud_service.metrics import Metrics
from cloud_service.models import Models
from cloud_service.open_inference import OpenInference
from cloud_service.reload import Reload
from cloud_service.sample_metrics import SampleMetrics
from cloud_service.samples import Samples
from cloud_service.servicer import Servicer
from cloud_service.settings import (
    Settings,
    config_path,
    describe,
    load_settings,
    misspelt_variables,
    tune_grpc,
)
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
_log = logging.getLogger("cloud_service")


async def serve(settings: Settings) -> int:
    """Run the service until SIGTERM or SIGINT; the exit status."""
    signals = Signals()
    room = connections_within(settings.max_connections, "CLOUD_MAX_CONNECTIONS")
    settings = settings.model_copy(update={"max_connections": room})

    # What it is made of. One thread runs the models: ONNX Runtime spreads a run over the cores itself.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics, vitals = Metrics(registry), Vitals(registry)
    lag = LoopLag(vitals.loop_lag.observe)
    vitals.recent_lag.set_function(lambda: lag.recent_s)
    loop = asyncio.get_running_loop()
    vitals.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
    watchdog = Watchdog(settings.run_limit_ms / 1000, vitals.happened)
    doors = Doors(settings, metrics.certified, lambda reason: metrics.refused_nodes.labels(reason).inc())
    models = Models()
    runs = Workers(1, "run")
    watchdog.on_stuck(runs.give_up)
    threads = os.cpu_count() or 1
    decoding = ThreadPoolExecutor(threads, "decode")
    decoders = Decoders(decoding, threads)
    catalogue = create_catalogue(models, settings, VERSION)
    held = max(settings.max_held_bytes, settings.max_message_bytes)
    intake = Intake(settings.max_message_bytes, held)
    protocol = OpenInference(models, catalogue, metrics, decoders, intake)
    # Of one stream, as many as may wait and run.
    inflight = settings.max_queue + settings.max_batch_size
    servicer = Servicer(models, metrics, decoders, catalogue, inflight, intake)
    samples = None
    if settings.samples is not None:
        samples = Samples(settings.samples, SampleMetrics(registry), max_bytes=settings.samples_max_bytes)
    fleet = Fleet(models, metrics, decoders, samples)
    grpc_server = GrpcServer(servicer, settings, tls=doors.tls, interceptors=doors.interceptors, fleet=fleet)

    # Listen first, so that health says "loading" instead of refusing; then load; then be ready.
    grace_s = settings.shutdown_ms / 1000
    connections = Connections(bounds(settings), metrics.turned_away, vitals.displaced.inc)
    vitals.show_connections(connections)
    try:
        http_server = HttpServer(
            doors.behind(create_admin(models, protocol.routes())),
            settings.host,
            settings.http_port,
            grace_s,
            connections,
            tls=doors.http_context,
        )
        management = Management(
            registry, settings.metrics_host, settings.metrics_port, settings.admin_token.get_secret_value()
        )
        await grpc_server.start()
    except (OSError, RuntimeError) as error:
        _log.error(
            "cannot listen on %s: %s; the ports are CLOUD_HTTP_PORT, CLOUD_GRPC_PORT and CLOUD_METRICS_PORT",
            settings.host, error,
        )  # fmt: skip
        return 1
    loader = Loader(settings, metrics, runs, watchdog)
    reload = Reload(models, loader.load, metrics, vitals)
    management.add("POST", "/admin/reload", lambda _: reload.run())
    for part in (http_server, doors, management, watchdog, lag):
        part.start()
    _log.info(
        "listening on %s: http_port=%d grpc_port=%d metrics_port=%d",
        settings.host, http_server.port, grpc_server.port, management.port,
    )  # fmt: skip
    status = 0
    try:
        names = await signals.unless_stopping(reload.start())
        if samples is not None:
            await samples.open()
        if names:
            await grpc_server.set_serving(True)
            _log.info("ready: %s", ", ".join(names))
            signals.on_hangup(reload.ask)
        await signals.stopping.wait()
    except BundleError as error:
        _log.error("refusing to serve: %s; CLOUD_BUNDLES names the folders, from the current one", error)
        status = 1

    # 1. say so, and be seen saying it
    tell = _log.info if status == 0 else _log.debug  # the last line stays the one that says why
    tell("stopping: in-flight calls get %.1f s", grace_s)
    models.ready = False
    loader.close()
    await grpc_server.set_serving(False)
    await asyncio.sleep(settings.drain_ms / 1000 if status == 0 else 0)
    # 2. finish what is in flight, 3. answer whoever still waits, 4. close the rest: each within a limit
    requests = together(http_server.stop(), grpc_server.stop(grace_s))
    await within(grace_s + CLOSE_S, "calls in flight", requests)
    await within(CLOSE_S, "the runs of the models", models.close())
    if samples is not None:
        await within(CLOSE_S, "the store of samples", samples.close())
    await within(CLOSE_S, "the watch over certificates", doors.close())
    runs.shutdown(cancel_futures=True)
    decoding.shutdown(cancel_futures=True)
    lag.stop()
    watchdog.stop()
    management.stop()
    tell("stopped")
    return end(status, orderly=not watchdog.under_way)


def main() -> None:
    """Read arguments and settings, then serve. Exit status 2 for wrong settings, 1 for a bad bundle."""
    parser = argparse.ArgumentParser(
        prog="tandem-cloud",
        description="The cloud service: answers what the edge escalates, with the full model.",
        epilog="settings, from the environment, else from the file, else the default:\n" + describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="TOML file of settings, named as below without CLOUD_")
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config or config_path())
        configure_logging(settings.log_level, settings.log_format)
        check(settings)
    except ValueError as error:
        parser.exit(2, f"tandem-cloud: {error}\n")
    tune_grpc()
    os.umask(0o077)  # samples are nobody else's to read
    for name, setting in misspelt_variables().items():
        _log.warning("%s is set, but is no setting; did you mean %s?", name, setting)
    sys.exit(uvloop.run(serve(settings)))


if __name__ == "__main__":
    main()
