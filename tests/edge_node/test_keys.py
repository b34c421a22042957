"""API keys: who has one gets in, as far as it goes; and no other."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.keys import Entry, Keyring, read_keys
from inference_core.errors import Forbidden, RateLimited, Unauthenticated

SECRET = "tandem_camera"


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def entry(name: str = "camera", secret: str = SECRET, **limits: Any) -> Entry:
    return Entry(name=name, sha256=digest(secret), **limits)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (b"Bearer tandem_camera", b""),
        (b"bearer  tandem_camera ", b""),
        (b"", b"tandem_camera"),
        (b"Basic dXNlcg==", b"tandem_camera"),
    ],
)
def test_a_key_may_come_in_either_header(authorization: bytes, api_key: bytes) -> None:
    assert Keyring([entry()], Clock()).find(authorization, api_key).name == "camera"


@pytest.mark.parametrize(
    ("authorization", "api_key", "words"),
    [
        (b"", b"", "key: none was sent; send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"),
        (b"Bearer ", b"", "key: none was sent"),
        (b"Bearer", b"", "key: none was sent"),
        (b"Basic dXNlcg==", b"", "key: none was sent"),
        (b"Bearer tandem_camera2", b"", "key: is none of this node's"),
        (b"Bearer wrong", b"tandem_camera", "key: is none of this node's"),
        (b"", digest(SECRET).encode(), "key: is none of this node's"),
    ],
)
def test_who_has_none_is_told_so(authorization: bytes, api_key: bytes, words: str) -> None:
    counted: list[tuple[str, str]] = []
    keyring = Keyring([entry()], Clock(), lambda *what: counted.append(what))
    with pytest.raises(Unauthenticated, match=words) as caught:
        keyring.find(authorization, api_key)
    assert SECRET not in str(caught.value)
    assert counted == [("unknown", "unauthenticated")]


@given(st.binary(max_size=100))
def test_nothing_but_the_key_opens(shown: bytes) -> None:
    keyring = Keyring([entry()], Clock())
    if shown != SECRET.encode():
        with pytest.raises(Unauthenticated):
            keyring.find(b"", shown)


def test_a_key_goes_as_far_as_its_models() -> None:
    counted: list[tuple[str, str]] = []
    keyring = Keyring([entry(models=["digits"])], Clock(), lambda *what: counted.append(what))
    key = keyring.find(b"", SECRET.encode())
    keyring.admit(key, "digits")
    with pytest.raises(Forbidden, match="key 'camera': may not ask for model 'colors'"):
        keyring.admit(key, "colors")
    assert counted == [("camera", "admitted"), ("camera", "forbidden")]


def test_a_key_goes_as_fast_as_its_rate() -> None:
    clock, counted = Clock(), list[tuple[str, str]]()
    keyring = Keyring([entry(rate=2, burst=3)], clock, lambda *what: counted.append(what))
    key = keyring.find(b"", SECRET.encode())
    for _ in range(3):
        keyring.admit(key, "digits")
    with pytest.raises(RateLimited, match="key 'camera': 2 requests a second are its limit") as caught:
        keyring.admit(key, "digits")
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    keyring.admit(key, "digits")
    assert counted.count(("camera", "rate_limited")) == 1


def test_another_file_adds_and_removes_and_forgives_nothing() -> None:
    clock = Clock()
    slow = entry("slow", "s", rate=0.001, burst=1)
    keyring = Keyring([entry(), slow], clock)
    keyring.admit(keyring.find(b"", b"s"), "digits")
    keyring.replace([slow, entry("late", "l")])
    assert keyring.names == {"slow", "late"}
    with pytest.raises(Unauthenticated):
        keyring.find(b"", SECRET.encode())
    with pytest.raises(RateLimited):
        keyring.admit(keyring.find(b"", b"s"), "digits")
    assert keyring.find(b"", b"l").name == "late"


def test_both_forms_of_the_file_say_the_same(tmp_path: Path) -> None:
    toml, as_json = tmp_path / "keys.toml", tmp_path / "keys.json"
    one = {"name": "camera", "sha256": digest(SECRET).upper(), "rate": 5, "models": ["digits"]}
    as_json.write_text(json.dumps({"keys": [one]}))
    toml.write_text(
        f'[[keys]]\nname = "camera"\nsha256 = "{digest(SECRET)}"\nrate = 5\nmodels = ["digits"]\n'
    )
    assert read_keys(toml) == read_keys(as_json) == (entry(rate=5, models=["digits"]),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys = 3", "keys: Input should be a valid tuple"),
        ("", "keys: Field required"),
        ("[[keys]]\nname = 'a'", "keys.0.sha256: Field required"),
        ("[[keys]]\nname = 'a'\nsha256 = 'b'", "keys.0.sha256: String should match"),
        ("[[keys]]\nname = 'a b'\nsha256 = '" + "0" * 64 + "'", "keys.0.name: String should match"),
        ("[[keys]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\nrate = 0", "keys.0.rate: Input should be"),
        ("[[keys]]\nname = 'a'\nsha256 = '" + "0" * 64 + "'\nkey = 'x'", "keys.0.key: Extra inputs"),
        ("[[keys]]\nname = 'unknown'\nsha256 = '" + "0" * 64 + "'", "no key can be named unknown"),
        (f"[[keys]]\nname='a'\nsha256='{'0' * 64}'\n[[keys]]\nname='a'\nsha256='{'1' * 64}'", "the name a"),
        (f"[[keys]]\nname='a'\nsha256='{'0' * 64}'\n[[keys]]\nname='b'\nsha256='{'0' * 64}'", "the sha256 0"),
        ("keys = [", "keys.toml: "),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"keys\.toml: .*{words}|{words}"):
        read_keys(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        read_keys(tmp_path / "nowhere.toml")


def test_an_empty_list_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("keys = []")
    with pytest.raises(Unauthenticated):
        Keyring(read_keys(path), Clock()).find(b"", b"anything")
