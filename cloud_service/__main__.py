"""Starts the cloud service: `python -m cloud_service`, or `tandem-cloud`."""

import argparse
import asyncio
import logging
import os
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

from cloud_service.admin import HttpServer, create_admin
from cloud_service.descriptions import create_catalogue
from cloud_service.grpc_server import GrpcServer
from cloud_service.logs import configure_logging
from cloud_service.metrics import Metrics
from cloud_service.models import Models, load_models
from cloud_service.open_inference import OpenInference
from cloud_service.servicer import Servicer
from cloud_service.settings import (
    Settings,
    config_path,
    describe,
    load_settings,
    misspelt_variables,
    tune_grpc,
)
from inference_core.errors import BundleError

VERSION = version("tandem-inference")
_log = logging.getLogger("cloud_service")


async def serve(settings: Settings) -> int:
    """Run the service until SIGTERM or SIGINT; the exit status."""
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)

    # What it is made of. One thread runs the models: ONNX Runtime spreads a run over the cores itself.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    metrics = Metrics(registry)
    models = Models()
    runs = ThreadPoolExecutor(1, "run")
    decoders = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
    catalogue = create_catalogue(models, settings, VERSION)
    protocol = OpenInference(models, catalogue, metrics, decoders, settings.max_message_bytes)
    # Of one stream, as many as may wait and run.
    inflight = settings.max_queue + settings.max_batch_size
    grpc_server = GrpcServer(Servicer(models, metrics, decoders, catalogue, inflight), settings)

    # Listen first, so that health says "loading" instead of refusing; then load; then be ready.
    grace_s = settings.shutdown_ms / 1000
    try:
        http_server = HttpServer(
            create_admin(models, protocol.routes()), settings.host, settings.http_port, grace_s
        )
        metrics_server, metrics_port = metrics.serve(settings.host, settings.metrics_port)
        await grpc_server.start()
    except (OSError, RuntimeError) as error:
        _log.error(
            "cannot listen on %s: %s; the ports are CLOUD_HTTP_PORT, CLOUD_GRPC_PORT and CLOUD_METRICS_PORT",
            settings.host, error,
        )  # fmt: skip
        return 1
    http_server.start()
    _log.info(
        "listening on %s: http_port=%d grpc_port=%d metrics_port=%d",
        settings.host, http_server.port, grpc_server.port, metrics_port,
    )  # fmt: skip
    status = 0
    try:
        loaded = await asyncio.to_thread(load_models, settings, metrics, runs, time.monotonic)
        models.load(loaded)
        await grpc_server.set_serving(True)
        _log.info("ready: %s", ", ".join(served.name for served in models.all()))
        await stopping.wait()
    except BundleError as error:
        _log.error("refusing to serve: %s; CLOUD_BUNDLES names the folders, from the current one", error)
        status = 1

    # 1. say so, 2. finish what is in flight, 3. answer whoever still waits, 4. close the rest
    if status == 0:  # else the last line stays the one that says why
        _log.info("stopping: in-flight calls get %.1f s", grace_s)
    models.ready = False
    await grpc_server.set_serving(False)
    await grpc_server.stop(grace_s)
    await models.close()
    await http_server.stop()
    metrics_server.shutdown()
    runs.shutdown(cancel_futures=True)
    decoders.shutdown(cancel_futures=True)
    if status == 0:
        _log.info("stopped")
    return status


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
    except ValueError as error:
        parser.exit(2, f"tandem-cloud: {error}\n")
    tune_grpc()
    configure_logging(settings.log_level, settings.log_format)
    for name, setting in misspelt_variables().items():
        _log.warning("%s is set, but is no setting; did you mean %s?", name, setting)
    sys.exit(uvloop.run(serve(settings)))


if __name__ == "__main__":
    main()
