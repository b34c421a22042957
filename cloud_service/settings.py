"""The cloud service's settings: from `CLOUD_*` in the environment, then from a TOML file, then defaults."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

PREFIX = "CLOUD_"
Port = Annotated[int, Field(ge=0, le=65535)]
File = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """Every setting with its unit and default; frozen, so that what was logged at start stays true."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    bundles: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)] = Field(
        (Path("models/digits"),), description="bundle folders, comma separated"
    )
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    http_port: Port = Field(9000, description="port of the REST interface; 0 picks a free one")
    grpc_port: Port = Field(9001, description="port of the gRPC interface; 0 picks a free one")
    metrics_port: Port = Field(9002, description="port of /metrics and /admin; 0 picks a free one")
    metrics_host: str = Field("127.0.0.1", description="address of the port of /metrics and /admin")
    admin_token: SecretStr = Field(
        SecretStr(""), description="what /admin asks for, as Bearer; empty lets this machine only"
    )
    threads: int = Field(0, ge=0, le=256, description="threads of one model run; 0 is one per core")
    max_batch_size: int = Field(16, ge=1, le=1024, description="samples in one model run, at most")
    batch_window_ms: float = Field(
        0.0, ge=0, le=1000, description="milliseconds a lone request waits for company; 0 never waits"
    )
    inline_ms: float = Field(
        1.0,
        ge=0,
        le=100,
        description="model runs up to so many milliseconds may skip the run thread; 0 never",
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
    max_queue: int = Field(256, ge=1, le=100_000, description="samples waiting per model, at most")
    adaptive_limit: bool = Field(
        True, description="refuse at once what would be late; false lets in whatever CLOUD_MAX_QUEUE does"
    )
    max_message_bytes: int = Field(
        16 << 20, ge=1024, le=1 << 30, description="bytes of the tensors of one request, at most"
    )
    max_held_bytes: int = Field(
        256 << 20, ge=1024, le=1 << 40, description="bytes of all requests in memory, at most; then 503"
    )
    max_connections: int = Field(
        1000, ge=1, le=100_000, description="connections of REST, and of gRPC, open at a time"
    )
    max_calls: int = Field(
        1024,
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
    tls_cert: File = Field(None, description="PEM file of this service's certificate; empty for no TLS")
    tls_key: File = Field(None, description="PEM file of that certificate's key, without a password")
    tls_client_ca: File = Field(
        None, description="PEM file of the authorities of the edge nodes: callers must show a certificate"
    )
    nodes: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="ids of the nodes that may call, comma separated; empty for all with a certificate"
    )
    revoked_nodes: File = Field(
        None, description="file of ids of nodes that may not call, one a line; taken again when it changes"
    )
    insecure: bool = Field(
        False, description="true serves whoever comes, beyond this machine and without certificates"
    )
    drain_ms: int = Field(
        0, ge=0, le=600_000, description="milliseconds between saying not ready and refusing, at shutdown"
    )
    shutdown_ms: int = Field(
        5000, ge=0, le=600_000, description="milliseconds that requests in flight get at shutdown"
    )
    samples: File = Field(
        None,
        description="file of the samples that edge nodes forward, in a folder that exists; empty takes none",
    )
    samples_max_bytes: int = Field(
        4 << 30, ge=65_536, le=1 << 44, description="bytes of that file, at most; then edges keep theirs"
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
            f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}, got {e['input']!r:.200}"
            for e in error.errors()
        )
        raise ValueError("\n".join(lines)) from error


def config_path() -> Path | None:
    """The settings file named by `CLOUD_CONFIG`, if any."""
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
