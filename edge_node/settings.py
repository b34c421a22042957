"""The edge node's settings: from `EDGE_*` in the environment, then from a TOML file, then defaults."""

import difflib
import json
import os
import platform
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from edge_node.policy import Mode, Payload, Privacy
from edge_node.preferences import Milliseconds, ModelPreferences

PREFIX = "EDGE_"
Port = Annotated[int, Field(ge=0, le=65535)]
_PEER = re.compile(r".+:\d{1,5}|(dns|ipv4|ipv6|unix):.+")
File = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


def _named(peer: str) -> str:
    if not _PEER.fullmatch(peer):
        raise ValueError("each is host:port, or a name with a scheme of gRPC's (dns, ipv4, ipv6, unix)")
    return peer


Peer = Annotated[str, AfterValidator(_named)]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _from_json(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """Every setting with its unit and default; frozen, so that what was logged at start stays true."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    bundles: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)] = Field(
        (Path("models/digits"),), description="bundle folders, comma separated"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    http_port: Port = Field(8000, description="port of the REST interfaces; 0 picks a free one")
    grpc_port: Port = Field(8001, description="port of the gRPC interface; 0 picks a free one")
    metrics_port: Port = Field(8002, description="port of /metrics and /admin; 0 picks a free one")
    metrics_host: str = Field("127.0.0.1", description="address of the port of /metrics and /admin")
    admin_token: SecretStr = Field(
        SecretStr(""), description="what /admin asks for, as Bearer; empty lets this machine only"
    )
    cloud: Annotated[tuple[Peer, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("127.0.0.1:9001",),
        max_length=16,
        description="host:port of the cloud's gRPC; several, comma separated, take turns; empty for no cloud",
    )
    mode: Mode = Field(Mode.CASCADE, description="edge, cloud, cascade, split or auto, unless a request says")
    deadline_ms: Milliseconds = Field(200, description="milliseconds to an answer, unless a request says")
    models: Annotated[dict[str, ModelPreferences], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict,
        description="JSON of mode, cut, deadline_ms, threshold, priority, upload, change_threshold "
        'per model: {"digits": {"mode": "edge"}}',
    )
    payload: Payload = Field(
        Payload.SMALLEST,
        description="what goes up for an image: smallest of image and tensor, or always tensor",
    )
    privacy: Privacy = Field(
        Privacy.ANY,
        description="what may leave this node: any, features-only or never-leaves-the-edge",
    )
    outbox: File = Field(
        None,
        description="file of the samples that are kept for the cloud to learn from, in a folder that exists; "
        "empty for none",
    )
    outbox_synchronous: Literal["full", "normal"] = Field(
        "full",
        description="full loses no acknowledged sample when the power goes; normal may lose the last",
    )
    outbox_max_bytes: int = Field(
        256 << 20, ge=4096, le=1 << 40, description="bytes of the samples on disk, at most"
    )
    outbox_max_age_h: float = Field(
        336.0, gt=0, le=87_600, description="hours after which a sample is dropped, forwarded or not"
    )
    outbox_share: float = Field(
        0.1, gt=0, le=1, description="share of the link's rate that forwarding samples may take"
    )
    confident_audit_rate: float = Field(
        0.01, ge=0, le=1, description="share of the confident answers whose samples are kept, as audits"
    )
    node_id: str = Field(
        default_factory=platform.node,
        min_length=1,
        max_length=128,
        description="this node's name in logs and with samples, as in its certificate; default is the host's",
    )
    threads: int = Field(1, ge=0, le=256, description="threads of one model run; 0 is one per core")
    workers: int = Field(
        default_factory=_cores,
        ge=1,
        le=256,
        description="model runs at the same time; default is one per core",
    )
    inline_ms: float = Field(
        default_factory=lambda: 0.5 if _cores() > 1 else 2.0,
        ge=0,
        le=100,
        description="milliseconds up to which a model runs without a thread; default is 0.5, on one core 2",
    )
    max_batch: int = Field(
        8, ge=1, le=256, description="samples in one model run, at most, where batching pays; 1 for never"
    )
    run_limit_ms: int = Field(
        10_000, ge=100, le=3_600_000, description="milliseconds after which a model run is ended, at least"
    )
    qualify_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="seconds a bundle's first runs may take, in a process of their own; 0: none",
    )
    qualify_memory_mb: int = Field(
        6144, ge=256, le=1 << 20, description="MiB of address space that those first runs may take"
    )
    max_inflight: int = Field(128, ge=1, le=100_000, description="requests being answered; more are told 503")
    adaptive_limit: bool = Field(
        True, description="refuse at once what would be late; false lets in whatever EDGE_MAX_INFLIGHT does"
    )
    max_rows: int = Field(64, ge=1, le=1024, description="samples in one Open Inference request, at most")
    max_body_bytes: int = Field(16 << 20, ge=1024, le=1 << 30, description="bytes of one request, at most")
    max_held_bytes: int = Field(
        128 << 20, ge=1024, le=1 << 40, description="bytes of all requests in memory, at most; then 503"
    )
    max_connections: int = Field(
        1000, ge=1, le=100_000, description="connections of REST, and of gRPC, open at a time"
    )
    max_calls: int = Field(
        512,
        ge=1,
        le=100_000,
        description="gRPC calls, streams among them, at a time; then RESOURCE_EXHAUSTED",
    )
    max_header_bytes: int = Field(
        16 << 10, ge=1024, le=1 << 20, description="bytes of a request's line and headers, at most"
    )
    head_timeout_ms: int = Field(
        10_000, ge=100, le=600_000, description="milliseconds until a request's headers must be complete"
    )
    body_timeout_ms: int = Field(
        30_000,
        ge=100,
        le=3_600_000,
        description="milliseconds to send a body, and to take an answer; then 408",
    )
    idle_timeout_ms: int = Field(
        30_000, ge=100, le=3_600_000, description="milliseconds an idle connection is kept open"
    )
    max_pixels: int = Field(
        16_000_000, ge=1, le=89_000_000, description="pixels of one image, at most, judged before decoding"
    )
    connect_timeout_ms: int = Field(
        2000, ge=100, le=60_000, description="milliseconds one attempt to connect to the cloud may take"
    )
    reserve_ms: float = Field(
        3.0, ge=0, le=1000, description="milliseconds kept back from the cloud for an answer to be in time"
    )
    breaker_failures: int = Field(
        5, ge=1, le=1000, description="failures in a row after which the cloud is left alone"
    )
    breaker_window: int = Field(
        50, ge=1, le=1000, description="calls among which the share of failures is looked at"
    )
    breaker_share: float = Field(
        0.5, gt=0, le=1, description="share of failures, as many as in a row at least, that does the same"
    )
    breaker_slow_ms: int = Field(
        0, ge=0, le=600_000, description="milliseconds from which an answer counts as a failure; 0 for never"
    )
    breaker_open_ms: int = Field(
        500, ge=10, le=600_000, description="milliseconds the cloud is left alone before the next try"
    )
    hedge: bool = Field(False, description="ask again what takes longer than 95 % do, 5 % more at most")
    escalate: bool = Field(True, description="whether anything is sent up; may be switched while it runs")
    min_escalation_interval_ms: int = Field(
        0, ge=0, le=86_400_000, description="milliseconds between two escalations, at least"
    )
    max_escalations_per_s: float = Field(
        0, ge=0, le=1e6, description="escalations a second, at most; 0 for any number"
    )
    max_escalation_bytes_per_s: int = Field(
        0, ge=0, le=1 << 40, description="bytes sent up a second, at most; 0 for any number"
    )
    max_escalation_bytes_per_day: int = Field(
        0, ge=0, le=1 << 50, description="bytes sent up in 24 hours, at most; 0 for any number"
    )
    api_keys: File = Field(
        None, description="TOML or JSON file of the devices' API keys; taken again when it changes"
    )
    tls_cert: File = Field(None, description="PEM file of the certificate for devices; empty for no TLS")
    tls_key: File = Field(None, description="PEM file of that certificate's key, without a password")
    cloud_tls_ca: File = Field(
        None, description="PEM file of the authorities of the cloud's certificate; empty for no TLS"
    )
    cloud_tls_cert: File = Field(None, description="PEM file of the certificate that the cloud is shown")
    cloud_tls_key: File = Field(None, description="PEM file of that certificate's key, without a password")
    cloud_tls_name: str = Field(
        "", max_length=253, description="name in the cloud's certificate, if not the one in EDGE_CLOUD"
    )
    insecure: bool = Field(
        False, description="true serves whoever comes, beyond this machine and without keys"
    )
    drain_ms: int = Field(
        0, ge=0, le=600_000, description="milliseconds between saying not ready and refusing, at shutdown"
    )
    shutdown_ms: int = Field(
        5000, ge=0, le=600_000, description="milliseconds that requests in flight get at shutdown"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level logged")
    log_format: Literal["text", "json"] = Field("text", description="one line per record: text or json")


def load_settings(config: Path | None) -> Settings:
    """Settings from the environment and, when given, the TOML file `config`.

    Raises `ValueError` with one line per wrong setting: its name, value and limit.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{config}: {error}") from error
    try:
        # what is in the environment goes before what is in the file
        return Settings(**{**values, **EnvSettingsSource(Settings)()})
    except ValidationError as error:
        lines = (
            f"{PREFIX}{'.'.join([str(e['loc'][0]).upper(), *map(str, e['loc'][1:])])}: {e['msg']}, "
            f"got {e['input']!r:.200}"
            for e in error.errors()
        )
        raise ValueError("\n".join(lines)) from error


def config_path() -> Path | None:
    """The settings file named by `EDGE_CONFIG`, if any."""
    value = os.environ.get(f"{PREFIX}CONFIG")
    return Path(value) if value else None


def tune_grpc() -> None:
    """Choose how gRPC waits for its sockets, unless `GRPC_EXPERIMENTS` says so already; before its first use.

    Where it reads sockets on the thread that waits for it instead of on threads of its own, a message comes
    back from the other end a third sooner (docs/adr/0009-kept-streams.md).
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")


def misspelt_variables() -> dict[str, str]:
    """Variables of the environment that are no setting but look like one, and which one."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | {f"{PREFIX}CONFIG"}
    strange = (name for name in os.environ if name.startswith(PREFIX) and name not in known)
    close = {name: difflib.get_close_matches(name, known, 1, 0.8) for name in sorted(strange)}
    return {name: matches[0] for name, matches in close.items() if matches}


def describe() -> str:
    """Every setting on a line of its own: name, default, meaning."""
    lines = [f"  {PREFIX + 'CONFIG':<36} {'':<16} TOML file of settings; --config goes before it"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        if shown is None or isinstance(shown, bool):
            shown = "" if shown is None else str(shown).lower()
        lines.append(f"  {PREFIX + name.upper():<36} {shown!s:<16} {field.description}")
    return "\n".join(lines)
