"""Settings from the environment, from a file, and by default; every bad one by its name and limit."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cloud_service.settings import (
    Settings,
    config_path,
    describe,
    load_settings,
    misspelt_variables,
    tune_grpc,
)

Env = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: Env) -> None:
    for name in os.environ:
        if name.upper().startswith("CLOUD_"):
            monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "cloud.toml"
    path.write_text(text)
    return path


def test_defaults_are_those_that_the_interface_promises() -> None:
    settings = load_settings(None)
    assert settings.bundles == (Path("models/digits"),)
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (9000, 9001, 9002)
    assert settings.batch_window_ms == 0.0
    assert settings.max_queue >= settings.max_batch_size


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("CLOUD_BUNDLES", "a, b", "bundles", (Path("a"), Path("b"))),
        ("CLOUD_HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("CLOUD_HTTP_PORT", "0", "http_port", 0),
        ("CLOUD_GRPC_PORT", "1", "grpc_port", 1),
        ("CLOUD_METRICS_PORT", "65535", "metrics_port", 65535),
        ("CLOUD_THREADS", "4", "threads", 4),
        ("CLOUD_MAX_BATCH_SIZE", "1", "max_batch_size", 1),
        ("CLOUD_BATCH_WINDOW_MS", "2.5", "batch_window_ms", 2.5),
        ("CLOUD_MAX_QUEUE", "7", "max_queue", 7),
        ("CLOUD_LOG_LEVEL", "ERROR", "log_level", "ERROR"),
    ],
)
def test_environment(monkeypatch: Env, name: str, text: str, field: str, value: object) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(load_settings(None), field) == value


def test_environment_goes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path, monkeypatch: Env
) -> None:
    monkeypatch.setenv("CLOUD_HTTP_PORT", "1")
    settings = load_settings(toml(tmp_path, 'http_port = 2\ngrpc_port = 3\nbundles = ["x", "y"]\n'))
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (1, 3, 9002)
    assert settings.bundles == (Path("x"), Path("y"))


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("CLOUD_BUNDLES", " ,", "at least 1 item"),
        ("CLOUD_HTTP_PORT", "65536", "less than or equal to 65535"),
        ("CLOUD_GRPC_PORT", "-1", "greater than or equal to 0"),
        ("CLOUD_METRICS_PORT", "x", "valid integer"),
        ("CLOUD_THREADS", "257", "less than or equal to 256"),
        ("CLOUD_MAX_BATCH_SIZE", "0", "greater than or equal to 1"),
        ("CLOUD_BATCH_WINDOW_MS", "1001", "less than or equal to 1000"),
        ("CLOUD_BATCH_WINDOW_MS", "nan", "or equal to"),
        ("CLOUD_MAX_QUEUE", "0", "greater than or equal to 1"),
        ("CLOUD_MAX_MESSAGE_BYTES", "1023", "greater than or equal to 1024"),
        ("CLOUD_MAX_PIXELS", "0", "greater than or equal to 1"),
        ("CLOUD_SHUTDOWN_MS", "600001", "less than or equal to 600000"),
        ("CLOUD_LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("CLOUD_LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_bad_value_is_named_with_its_limit(monkeypatch: Env, name: str, text: str, limit: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match="CLOUD_") as caught:
        load_settings(None)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}: ")
    assert limit in line
    assert f"got {text!r}"[:50] in line
    assert len(line) < 500


def test_every_wrong_setting_gets_a_line(tmp_path: Path, monkeypatch: Env) -> None:
    monkeypatch.setenv("CLOUD_THREADS", "many")
    with pytest.raises(ValueError, match="CLOUD_") as caught:
        load_settings(toml(tmp_path, "http_port = -1\nhttp_prot = 80\n"))
    named = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert named == {"CLOUD_THREADS", "CLOUD_HTTP_PORT", "CLOUD_HTTP_PROT"}


@pytest.mark.parametrize("content", [b"http_port =", b"\xff\xfe"])
def test_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cloud.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cloud\.toml"):
        load_settings(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_config_path(monkeypatch: Env) -> None:
    assert config_path() is None
    monkeypatch.setenv("CLOUD_CONFIG", "/etc/cloud.toml")
    assert config_path() == Path("/etc/cloud.toml")


def test_settings_are_frozen() -> None:
    settings = load_settings(None)
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1


def test_misspelt_variables_are_told_with_the_setting_they_look_like(monkeypatch: Env) -> None:
    for name in ("CLOUD_GRPCPORT", "CLOUD_PROVIDER", "CLOUD_HTTP_PORT", "CLOUD_CONFIG"):
        monkeypatch.setenv(name, "1")
    assert misspelt_variables() == {"CLOUD_GRPCPORT": "CLOUD_GRPC_PORT"}


def test_description_has_a_line_for_each_setting_with_its_default() -> None:
    config, *lines = describe().splitlines()
    assert config.split()[0] == "CLOUD_CONFIG"
    assert [line.split()[0] for line in lines] == [f"CLOUD_{name}".upper() for name in Settings.model_fields]
    for line, (name, field) in zip(lines, Settings.model_fields.items(), strict=True):
        assert field.description, name
        assert str(field.description) in line
        default = "models/digits" if name == "bundles" else str(field.default or "")
        if default:
            assert line.split()[1].lower() == default.lower()


def test_grpc_is_tuned_unless_the_operator_has_said_how(monkeypatch: Env) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")  # put back after the test, whatever it was
    del os.environ["GRPC_EXPERIMENTS"]
    tune_grpc()
    assert os.environ["GRPC_EXPERIMENTS"] == "-event_engine_client,-event_engine_listener"
    monkeypatch.setenv("GRPC_EXPERIMENTS", "tcp_rcv_lowat")
    tune_grpc()
    assert os.environ["GRPC_EXPERIMENTS"] == "tcp_rcv_lowat"
