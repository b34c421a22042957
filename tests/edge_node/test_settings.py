"""Settings from the environment, from a file, and by default; every bad one by its name and limit."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edge_node.policy import Mode, Payload
from edge_node.preferences import ModelPreferences
from edge_node.settings import Settings, config_path, describe, load_settings, misspelt_variables, tune_grpc

Env = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: Env) -> None:
    for name in os.environ:
        if name.upper().startswith("EDGE_"):
            monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "edge.toml"
    path.write_text(text)
    return path


def test_defaults_are_those_that_the_interface_promises() -> None:
    settings = load_settings(None)
    assert settings.bundles == (Path("models/digits"),)
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (8000, 8001, 8002)
    assert settings.cloud == ("127.0.0.1:9001",)
    assert settings.mode is Mode.CASCADE
    assert settings.payload is Payload.SMALLEST
    assert settings.models == {}
    assert settings.node_id
    assert settings.workers >= 1


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("EDGE_BUNDLES", "a", "bundles", (Path("a"),)),
        ("EDGE_BUNDLES", " a, b ,,/c/d ", "bundles", (Path("a"), Path("b"), Path("/c/d"))),
        ("EDGE_HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("EDGE_HTTP_PORT", "0", "http_port", 0),
        ("EDGE_GRPC_PORT", "65535", "grpc_port", 65535),
        ("EDGE_METRICS_PORT", "1", "metrics_port", 1),
        ("EDGE_CLOUD", "", "cloud", ()),
        ("EDGE_CLOUD", "dns:///cloud:9001", "cloud", ("dns:///cloud:9001",)),
        ("EDGE_CLOUD", "a:1, b:2,", "cloud", ("a:1", "b:2")),
        ("EDGE_MODE", "split", "mode", Mode.SPLIT),
        ("EDGE_DEADLINE_MS", "60000", "deadline_ms", 60_000),
        ("EDGE_PAYLOAD", "tensor", "payload", Payload.TENSOR),
        ("EDGE_NODE_ID", "meter-7", "node_id", "meter-7"),
        ("EDGE_MODELS", "{}", "models", {}),
        (
            "EDGE_MODELS",
            '{"a": {"mode": "split", "cut": "c", "deadline_ms": 5, "threshold": 0.5}}',
            "models",
            {"a": ModelPreferences(mode=Mode.SPLIT, cut="c", deadline_ms=5, threshold=0.5)},
        ),
        ("EDGE_LOG_FORMAT", "json", "log_format", "json"),
    ],
)
def test_environment(monkeypatch: Env, name: str, text: str, field: str, value: object) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(load_settings(None), field) == value


def test_file(tmp_path: Path) -> None:
    config = toml(
        tmp_path,
        'bundles = ["a", "b"]\nhttp_port = 7\ncloud = ""\n'
        '[models.a]\nmode = "split"\ncut = "c"\n[models.b]\nthreshold = 0.25\n',
    )
    settings = load_settings(config)
    assert settings.bundles == (Path("a"), Path("b"))
    assert (settings.http_port, settings.cloud) == (7, ())
    assert settings.models == {
        "a": ModelPreferences(mode=Mode.SPLIT, cut="c"),
        "b": ModelPreferences(threshold=0.25),
    }


def test_environment_goes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path, monkeypatch: Env
) -> None:
    monkeypatch.setenv("EDGE_HTTP_PORT", "1")
    settings = load_settings(toml(tmp_path, "http_port = 2\ngrpc_port = 3\n"))
    assert (settings.http_port, settings.grpc_port, settings.metrics_port) == (1, 3, 8002)


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("EDGE_BUNDLES", "", "at least 1 item"),
        ("EDGE_BUNDLES", " , ", "at least 1 item"),
        ("EDGE_HTTP_PORT", "65536", "less than or equal to 65535"),
        ("EDGE_HTTP_PORT", "-1", "greater than or equal to 0"),
        ("EDGE_GRPC_PORT", "http", "valid integer"),
        ("EDGE_METRICS_PORT", "1.5", "valid integer"),
        ("EDGE_CLOUD", "cloud", "each is host:port, or a name with a scheme"),
        ("EDGE_MODE", "fast", "'edge', 'cloud', 'cascade', 'split'"),
        ("EDGE_DEADLINE_MS", "0", "greater than or equal to 1"),
        ("EDGE_DEADLINE_MS", "60001", "less than or equal to 60000"),
        ("EDGE_MODELS", "{bad", "not JSON"),
        ("EDGE_MODELS", "[" * 100_000, "not JSON"),
        ("EDGE_PAYLOAD", "jpeg", "'smallest' or 'tensor'"),
        ("EDGE_NODE_ID", "", "at least 1 character"),
        ("EDGE_NODE_ID", "n" * 129, "at most 128 characters"),
        ("EDGE_THREADS", "-1", "greater than or equal to 0"),
        ("EDGE_THREADS", "257", "less than or equal to 256"),
        ("EDGE_WORKERS", "0", "greater than or equal to 1"),
        ("EDGE_MAX_INFLIGHT", "0", "greater than or equal to 1"),
        ("EDGE_MAX_ROWS", "1025", "less than or equal to 1024"),
        ("EDGE_MAX_BODY_BYTES", "1023", "greater than or equal to 1024"),
        ("EDGE_MAX_BODY_BYTES", str((1 << 30) + 1), "less than or equal to 1073741824"),
        ("EDGE_MAX_PIXELS", "100000000", "less than or equal to 89000000"),
        ("EDGE_CONNECT_TIMEOUT_MS", "99", "greater than or equal to 100"),
        ("EDGE_BREAKER_FAILURES", "0", "greater than or equal to 1"),
        ("EDGE_BREAKER_OPEN_MS", "9", "greater than or equal to 10"),
        ("EDGE_BREAKER_SHARE", "0", "greater than 0"),
        ("EDGE_MAX_ESCALATIONS_PER_S", "-1", "greater than or equal to 0"),
        ("EDGE_SHUTDOWN_MS", "-1", "greater than or equal to 0"),
        ("EDGE_LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("EDGE_LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_bad_value_is_named_with_its_limit(monkeypatch: Env, name: str, text: str, limit: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match="EDGE_") as caught:
        load_settings(None)
    (line,) = str(caught.value).splitlines()
    assert line.partition(":")[0].removesuffix(".0") == name
    assert limit in line
    assert f"got {text!r}"[:50] in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ('{"a": {"mode": "fast"}}', "EDGE_MODELS.a.mode: Input should be 'edge', 'cloud', 'cascade'"),
        (
            '{"a": {"deadline_ms": 0}}',
            "EDGE_MODELS.a.deadline_ms: Input should be greater than or equal to 1",
        ),
        ('{"a": {"threshold": 1.5}}', "EDGE_MODELS.a.threshold: Input should be less than or equal to 1"),
        ('{"a": {"threshold": NaN}}', "EDGE_MODELS.a.threshold: Input should be"),
        ('{"a": {"treshold": 0.5}}', "EDGE_MODELS.a.treshold: Extra inputs are not permitted"),
        ("[]", "EDGE_MODELS: Input should be a valid dictionary, got []"),
        ('{"a": 3}', "EDGE_MODELS.a: Input should be"),
    ],
)
def test_bad_setting_of_a_model(monkeypatch: Env, models: str, line: str) -> None:
    monkeypatch.setenv("EDGE_MODELS", models)
    with pytest.raises(ValueError, match="EDGE_") as caught:
        load_settings(None)
    assert str(caught.value).startswith(line)


def test_every_wrong_setting_gets_a_line(tmp_path: Path, monkeypatch: Env) -> None:
    monkeypatch.setenv("EDGE_MODE", "fast")
    with pytest.raises(ValueError, match="EDGE_") as caught:
        load_settings(toml(tmp_path, "http_port = -1\nhttp_prot = 80\n"))
    named = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert named == {"EDGE_MODE", "EDGE_HTTP_PORT", "EDGE_HTTP_PROT"}


@pytest.mark.parametrize("content", [b"http_port =", b"\xff\xfe", b"[models\n"])
def test_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"edge\.toml"):
        load_settings(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_config_path(monkeypatch: Env) -> None:
    assert config_path() is None
    monkeypatch.setenv("EDGE_CONFIG", "")
    assert config_path() is None
    monkeypatch.setenv("EDGE_CONFIG", "/etc/edge.toml")
    assert config_path() == Path("/etc/edge.toml")


def test_settings_are_frozen() -> None:
    settings = load_settings(None)
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1
    with pytest.raises(ValidationError, match="frozen"):
        ModelPreferences().mode = Mode.EDGE


def test_misspelt_variables_are_told_with_the_setting_they_look_like(monkeypatch: Env) -> None:
    for name in ("EDGE_HTTPPORT", "EDGE_BUNDLE", "EDGE_CASE", "EDGE_HTTP_PORT", "EDGE_CONFIG", "HTTP_PORTS"):
        monkeypatch.setenv(name, "1")
    assert misspelt_variables() == {"EDGE_HTTPPORT": "EDGE_HTTP_PORT", "EDGE_BUNDLE": "EDGE_BUNDLES"}


def test_description_has_a_line_for_each_setting_with_its_default() -> None:
    lines = describe().splitlines()
    names = ["config", *Settings.model_fields]
    assert [line.split()[0] for line in lines] == [f"EDGE_{name}".upper() for name in names]
    shown: dict[str, Any] = {line.split()[0]: line for line in lines}
    for name, default in (
        ("EDGE_BUNDLES", "models/digits"),
        ("EDGE_HTTP_PORT", "8000"),
        ("EDGE_CLOUD", "127.0.0.1:9001"),
        ("EDGE_MODE", "cascade"),
        ("EDGE_DEADLINE_MS", "200"),
        ("EDGE_PAYLOAD", "smallest"),
        ("EDGE_HEDGE", "false"),
    ):
        assert default in shown[name]
    assert not any("None" in line for line in lines)
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert str(field.description) in shown[f"EDGE_{name}".upper()]


def test_times_and_sizes_are_described_with_their_unit() -> None:
    for name, field in Settings.model_fields.items():
        if name.endswith("_ms"):
            assert "milliseconds" in str(field.description)
        if name.endswith("_bytes"):
            assert "bytes" in str(field.description)


def test_grpc_is_tuned_unless_the_operator_has_said_how(monkeypatch: Env) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")  # put back after the test, whatever it was
    del os.environ["GRPC_EXPERIMENTS"]
    tune_grpc()
    assert os.environ["GRPC_EXPERIMENTS"] == "-event_engine_client,-event_engine_listener"
    monkeypatch.setenv("GRPC_EXPERIMENTS", "tcp_rcv_lowat")
    tune_grpc()
    assert os.environ["GRPC_EXPERIMENTS"] == "tcp_rcv_lowat"
