"""The cloud service's settings: from `CLOUD_*` in the environment, then from a TOML file, then defaults."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

PREFIX = "CLOUD_"
Port = Annotated[int, Field(ge=0, le=65535)]


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
    metrics_port: Port = Field(9002, description="port of /metrics; 0 picks a free one")
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
    max_queue: int = Field(256, ge=1, le=100_000, description="samples waiting per model, at most")
    max_message_bytes: int = Field(
        16 << 20, ge=1024, le=1 << 30, description="bytes of the tensors of one request, at most"
    )
    max_pixels: int = Field(
        16_000_000, ge=1, le=89_000_000, description="pixels of one image, at most, judged before decoding"
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
    lines = []
    for name, field in Settings.model_fields.items():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        lines.append(f"  {PREFIX}{name.upper():<20} {default!s:<16} {field.description}")
    return "\n".join(lines)
