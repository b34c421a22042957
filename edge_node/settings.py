"""The edge node's settings: from `EDGE_*` in the environment, then from a TOML file, then defaults."""

import difflib
import json
import os
import platform
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from edge_node.policy import Mode, Payload, Privacy
from edge_node.preferences import Milliseconds, Preferences

PREFIX = "EDGE_"
Port = Annotated[int, Field(ge=0, le=65535)]


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
    metrics_port: Port = Field(8002, description="port of /metrics; 0 picks a free one")
    cloud: str = Field(
        "127.0.0.1:9001",
        pattern=r"^$|^.+:\d{1,5}$|^(dns|ipv4|ipv6|unix):.+$",
        description="host:port of the cloud's gRPC; empty for no cloud",
    )
    mode: Mode = Field(Mode.CASCADE, description="edge, cloud, cascade, split or auto, unless a request says")
    deadline_ms: Milliseconds = Field(200, description="milliseconds to an answer, unless a request says")
    models: Annotated[dict[str, Preferences], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict,
        description='JSON of mode, cut, deadline_ms, threshold per model: {"digits": {"mode": "edge"}}',
    )
    payload: Payload = Field(
        Payload.SMALLEST,
        description="what goes up for an image: smallest of image and tensor, or always tensor",
    )
    privacy: Privacy = Field(
        Privacy.ANY,
        description="what may leave this node: any, features-only or never-leaves-the-edge",
    )
    node_id: str = Field(
        default_factory=platform.node,
        min_length=1,
        max_length=128,
        description="this node's name in logs; default is the host's name",
    )
    threads: int = Field(1, ge=0, le=256, description="threads of one model run; 0 is one per core")
    workers: int = Field(
        default_factory=_cores,
        ge=1,
        le=256,
        description="model runs at the same time; default is one per core",
    )
    inline_ms: float = Field(
        default_factory=lambda: 0.5 if _cores() > 1 else 10.0,
        ge=0,
        le=100,
        description="milliseconds up to which a model runs without a thread; default is 0.5, on one core 10",
    )
    max_batch: int = Field(
        8, ge=1, le=256, description="samples in one model run, at most, where batching pays; 1 for never"
    )
    max_inflight: int = Field(128, ge=1, le=100_000, description="requests being answered; more are told 503")
    max_rows: int = Field(64, ge=1, le=1024, description="samples in one Open Inference request, at most")
    max_body_bytes: int = Field(16 << 20, ge=1024, le=1 << 30, description="bytes of one request, at most")
    max_held_bytes: int = Field(
        128 << 20, ge=1024, le=1 << 40, description="bytes of all REST requests in memory, at most; then 503"
    )
    max_pixels: int = Field(
        16_000_000, ge=1, le=89_000_000, description="pixels of one image, at most, judged before decoding"
    )
    connect_timeout_ms: int = Field(
        2000, ge=100, le=60_000, description="milliseconds one attempt to connect to the cloud may take"
    )
    breaker_failures: int = Field(
        5, ge=1, le=1000, description="failures in a row after which the cloud is left alone"
    )
    breaker_open_ms: int = Field(
        500, ge=10, le=600_000, description="milliseconds the cloud is left alone before the next try"
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
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        lines.append(f"  {PREFIX}{name.upper():<20} {shown!s:<16} {field.description}")
    return "\n".join(lines)
