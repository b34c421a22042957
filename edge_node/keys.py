"""The API keys of devices: whose a request is, which models it may ask for, and how often.

Only the SHA-256 of a key is kept. A slow hash with salt protects passwords, which people choose and which can
therefore be tried out; a key is 256 random bits, which nobody can try out. So a look-up costs a microsecond.
"""

import hashlib
import hmac
import json
import math
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from edge_node.bucket import Bucket
from inference_core.errors import Forbidden, RateLimited, Unauthenticated

UNKNOWN = "unknown"
OUTCOMES = ("admitted", "forbidden", "rate_limited")
_BEARER = b"bearer "
_HOW = "send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"


class Entry(BaseModel):
    """One key of the file. `rate` is requests a second, by default without limit, `burst` requests at once,
    by default those of a second. `models` are the names of the models that it may ask for, by default all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]
    rate: float | None = Field(None, gt=0, le=1e6)
    burst: int | None = Field(None, ge=1, le=1_000_000)
    models: frozenset[str] | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Entry, ...]


class Key:
    """One device's key, and what it has used up."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.name = entry.name
        self.digest = bytes.fromhex(entry.sha256)
        self.bucket: Bucket | None = None
        if entry.rate is not None:
            self.bucket = Bucket(entry.rate, float(entry.burst or max(1, math.ceil(entry.rate))))


class Keyring:
    """All keys of the file, which may be replaced by others at any time."""

    def __init__(
        self,
        entries: Iterable[Entry],
        clock: Callable[[], float],
        count: Callable[[str, str], object] = lambda _name, _outcome: None,
    ) -> None:
        """`clock` is monotonic, in seconds; `count` is told the key's name and one of `OUTCOMES` for each
        request for inference, and `UNKNOWN` with `unauthenticated` for whoever shows no key of these."""
        self._clock = clock
        self._count = count
        self._keys: dict[bytes, Key] = {}
        self.replace(entries)

    @property
    def names(self) -> frozenset[str]:
        """The names of all keys."""
        return frozenset(key.name for key in self._keys.values())

    def replace(self, entries: Iterable[Entry]) -> None:
        """Take these keys from now on. What an entry that stays the same has used up stays used up."""
        fresh = {}
        for entry in entries:
            digest = bytes.fromhex(entry.sha256)
            held = self._keys.get(digest)
            fresh[digest] = held if held is not None and held.entry == entry else Key(entry)
        self._keys = fresh

    def find(self, authorization: bytes, api_key: bytes) -> Key:
        """The key in the values of the two headers, empty for none. Raises `Unauthenticated`."""
        shown = api_key
        if authorization[: len(_BEARER)].lower() == _BEARER:
            shown = authorization[len(_BEARER) :].strip()
        if not shown:
            self._count(UNKNOWN, "unauthenticated")
            raise Unauthenticated(f"key: none was sent; {_HOW}")
        digest = hashlib.sha256(shown).digest()
        # Who has no key cannot choose what the hash is, so that the time of this look-up tells nothing.
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            self._count(UNKNOWN, "unauthenticated")
            raise Unauthenticated(f"key: is none of this node's; {_HOW}")
        return key

    def admit(self, key: Key, model: str) -> None:
        """Count one request for `model`. Raises `Forbidden` and, over the key's rate, `RateLimited`."""
        allowed = key.entry.models
        if allowed is not None and model not in allowed:
            self._count(key.name, "forbidden")
            raise Forbidden(f"key {key.name!r}: may not ask for model {model[:64]!r}")
        if key.bucket is not None and (wait_s := key.bucket.take(self._clock())) > 0:
            self._count(key.name, "rate_limited")
            raise RateLimited(
                f"key {key.name!r}: {key.bucket.rate:g} requests a second are its limit", wait_s
            )
        self._count(key.name, "admitted")


def read_keys(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, TOML or, if it is named so, JSON: a list `keys`; it may be empty, then nobody
    gets in. `ValueError` says what is wrong.
    """
    try:
        text = path.read_text()
        found = _File.model_validate(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {where}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in found.keys]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"{path}: two keys with the {what} {min(twice)}")
    if any(entry.name == UNKNOWN for entry in found.keys):
        raise ValueError(f"{path}: no key can be named {UNKNOWN}, that is what strangers are counted as")
    return found.keys
