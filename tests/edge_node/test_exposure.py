"""Nobody serves strangers by accident, and half a setting is said at the start."""

from pathlib import Path
from typing import Any

import pytest

from edge_node.exposure import check, cloud_tls_files, is_local, tls_files
from edge_node.settings import Settings
from tests.certificates import Site


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.7", False), ("", False), ("edge.example", False),
    ],
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_local(host) is local


def settings(**given: Any) -> Settings:
    return Settings(**given)


def test_beyond_this_machine_there_are_two_ways(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, files = tmp_path / "keys.toml", Site(tmp_path).cloud()
    keys.write_text("keys = []")
    with pytest.raises(
        ValueError, match=r"EDGE_HOST: 0\.0\.0\.0 is open to strangers; set EDGE_API_KEYS, or"
    ):
        check(settings(host="0.0.0.0"))
    check(settings(host="0.0.0.0", api_keys=keys, tls_cert=files.certificate, tls_key=files.key))
    assert not caplog.records
    check(settings(host="0.0.0.0", api_keys=keys))
    assert "keys of devices can be read on their way to 0.0.0.0" in caplog.text
    check(settings(host="0.0.0.0", insecure=True))
    assert "insecure: whoever reaches 0.0.0.0 may use every model" in caplog.text


def test_what_goes_up_in_clear_text_is_said(caplog: pytest.LogCaptureFixture) -> None:
    check(settings(cloud="127.0.0.1:9001, [::1]:9001,localhost:9001"))
    assert not caplog.records
    check(settings(cloud="127.0.0.1:9001,cloud.example:9001"))
    assert "what goes up can be read on its way to cloud.example:9001;" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": "a.pem"}, "EDGE_TLS_CERT and EDGE_TLS_KEY: one without the other"),
        ({"cloud_tls_key": "a.key"}, "EDGE_CLOUD_TLS_CERT and EDGE_CLOUD_TLS_KEY: one without the other"),
        ({"cloud_tls_cert": "a", "cloud_tls_key": "b"}, "EDGE_CLOUD_TLS_CA: is empty"),
        ({"cloud_tls_name": "cloud"}, "EDGE_CLOUD_TLS_CA: is empty"),
        ({"tls_cert": "a.pem", "tls_key": "a.key"}, r"EDGE_TLS_CERT: a\.pem: No such file"),
        ({"cloud_tls_ca": "ca.pem"}, r"EDGE_CLOUD_TLS_CA: ca\.pem: No such file"),
        ({"api_keys": "keys.toml"}, r"EDGE_API_KEYS: keys\.toml: .*No such file"),
    ],
)
def test_half_of_something_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(settings(**given))


def test_empty_is_none() -> None:
    empty = settings(tls_cert="", tls_key="", cloud_tls_ca="", api_keys="")
    assert tls_files(empty) is None
    assert cloud_tls_files(empty) is None
