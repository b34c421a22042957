"""`tandem keygen`: what a trial of mutual TLS and of API keys needs, in one folder."""

import hashlib
import ipaddress
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from re import compile as pattern
from typing import Annotated

import typer

from inference_core.certificate import node_uri
from inference_core.errors import InvalidInput
from toolchain.authority import Authority, now, write_private

DEVICES = "devices.toml"
KEY_BYTES = 32
_LOCAL = ("localhost", "127.0.0.1", "::1")
_NAME = pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = pattern(r"[A-Za-z0-9*]([A-Za-z0-9.-]{0,252})")
_RESERVED = frozenset({"ca", "cloud", "edges"})
_STRANGERS = "unknown"

app = typer.Typer()


@dataclass(frozen=True)
class Wanted:
    """What to make: host names and addresses of the cloud, ids of edge nodes, names of devices, and by which
    host names and addresses those reach the edge nodes."""

    cloud: Sequence[str]
    edges: Sequence[str]
    devices: Sequence[str]
    lifetime: timedelta
    edge_hosts: Sequence[str] = ()

    @property
    def servers(self) -> dict[str, Sequence[str]]:
        """The names of each certificate that a server shows."""
        hosts = {"cloud": self.cloud, "edges": self.edge_hosts}
        return {name: list(dict.fromkeys((*given, *_LOCAL))) for name, given in hosts.items() if given}


@dataclass(frozen=True)
class Made:
    """What was made: files, and the keys of new devices by name, which are kept nowhere."""

    files: list[Path]
    keys: dict[str, str]


@app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="folder for keys and certificates; made when missing")],
    cloud: Annotated[
        list[str] | None,
        typer.Option(help="host name or address by which edges reach the cloud; localhost is always one"),
    ] = None,
    edge: Annotated[list[str] | None, typer.Option(help="id of an edge node")] = None,
    edge_host: Annotated[
        list[str] | None,
        typer.Option(help="host name or address by which devices reach edge nodes, for HTTPS to them"),
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="name of a device that gets an API key")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="days that the certificates hold")] = 30,
    renew: Annotated[
        bool, typer.Option("--renew", help="put new certificates in the place of those that are there")
    ] = False,
) -> None:
    """Make a private authority for a trial, certificates for cloud and edges, and API keys for devices.

    Run it again to add nodes and devices: the authority stays, and so does the rest without --renew.
    Services that run take the renewed files within two seconds. Each device's key is printed once; the folder
    holds its SHA-256 only.
    """
    wanted = Wanted(cloud or [], edge or [], device or [], timedelta(days=days), edge_host or [])
    made = make(out, wanted, now(), renew=renew)
    for path in made.files:
        typer.echo(f"wrote {path}")
    for name, key in made.keys.items():
        typer.echo(f"key of {name}, shown only now: {key}")
    for line in settings(out):
        typer.echo(line)


def make(folder: Path, wanted: Wanted, at: datetime, *, renew: bool) -> Made:
    """Make in `folder` what is wanted. Nothing is written when something is wrong.

    Raises `InvalidInput` for a wrong name, or for what is there already and is not to be renewed.
    """
    if not (wanted.servers or wanted.edges or wanted.devices):
        raise InvalidInput(
            "--cloud, --edge, --edge-host, --device: nothing to make, give at least one of them"
        )
    authority, files = Authority.read(folder), []
    fresh = authority is None
    authority = authority or Authority.make(at)
    _check(wanted)
    _check_free(folder, wanted, renew=renew)
    pairs = {node: authority.edge(node, at, wanted.lifetime) for node in wanted.edges}
    for name, hosts in wanted.servers.items():
        pairs[name] = authority.server(hosts, at, wanted.lifetime)
    keys = {name: f"tandem_{secrets.token_urlsafe(KEY_BYTES)}" for name in wanted.devices}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if fresh and pairs:
        authority.write(folder)
        files += [folder / "ca.pem", folder / "ca.key"]
    for name, pair in pairs.items():
        pair.write(folder, name)
        files += [folder / f"{name}.pem", folder / f"{name}.key"]
    if keys:
        write_private(folder / DEVICES, _devices(folder / DEVICES, keys).encode())
        files.append(folder / DEVICES)
    return Made(files, keys)


def settings(folder: Path) -> list[str]:
    """The settings by which services use what is in the folder."""
    lines = []
    edges = sorted(p.stem for p in folder.glob("*.key") if p.stem not in _RESERVED)
    if (folder / "cloud.pem").exists():
        lines += [
            "", "# the cloud service", f"CLOUD_TLS_CERT={folder}/cloud.pem",
            f"CLOUD_TLS_KEY={folder}/cloud.key", f"CLOUD_TLS_CLIENT_CA={folder}/ca.pem",
        ]  # fmt: skip
    for node in edges:
        lines += [
            "", f"# the edge node {node}", f"EDGE_NODE_ID={node}", f"EDGE_CLOUD_TLS_CA={folder}/ca.pem",
            f"EDGE_CLOUD_TLS_CERT={folder}/{node}.pem", f"EDGE_CLOUD_TLS_KEY={folder}/{node}.key",
        ]  # fmt: skip
    if (folder / "edges.pem").exists():
        lines += [
            "", "# every edge node that devices reach by HTTPS", f"EDGE_TLS_CERT={folder}/edges.pem",
            f"EDGE_TLS_KEY={folder}/edges.key",
        ]  # fmt: skip
    if (folder / DEVICES).exists():
        lines += ["", "# every edge node with these devices", f"EDGE_API_KEYS={folder}/{DEVICES}"]
    return lines


def _check(wanted: Wanted) -> None:
    for node in wanted.edges:
        try:
            node_uri(node)
        except ValueError as error:
            raise InvalidInput(f"--edge: {error}") from error
        if node in _RESERVED:
            raise InvalidInput(f"--edge: {node!r} is the name of another file here, choose another id")
    for name in wanted.devices:
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"--device: {name!r}: must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with no sign"
            )
        if name == _STRANGERS:
            raise InvalidInput(f"--device: {name!r}: that is what strangers are counted as")
    for option, hosts in (("--cloud", wanted.cloud), ("--edge-host", wanted.edge_hosts)):
        for host in hosts:
            if not _HOST.fullmatch(host) and not _is_address(host):
                raise InvalidInput(f"{option}: {host!r} is no host name or address")


def _check_free(folder: Path, wanted: Wanted, *, renew: bool) -> None:
    known = _names(folder / DEVICES)
    if again := known & set(wanted.devices):
        raise InvalidInput(
            f"--device: {min(again)} has a key in {folder / DEVICES}; for a new one, take its entry out first"
        )
    there = [name for name in (*wanted.servers, *wanted.edges) if (folder / f"{name}.pem").exists()]
    if there and not renew:
        raise InvalidInput(f"--out: {folder / there[0]}.pem is there; --renew puts a new one in its place")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _names(path: Path) -> set[str]:
    if not path.exists():
        return set()
    try:
        return {str(entry["name"]) for entry in tomllib.loads(path.read_text())["keys"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path}: is not what this command has written: {error}") from error


def _devices(path: Path, keys: dict[str, str]) -> str:
    """The file of keys with new entries at its end; those who edit it keep their words."""
    text = path.read_text() if path.exists() else (
        "# API keys of devices: the SHA-256 of each. Further fields of an entry: rate (requests a second),\n"
        '# burst (requests at once), models (a list of names; all when it is missing).\n'
    )  # fmt: skip
    for name, key in keys.items():
        text += f'\n[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    return text
