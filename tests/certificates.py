"""An authority for tests, and the files of those that it has certified; as `tandem keygen` makes them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from inference_core.certificate import Files
from toolchain.authority import Authority, Pair, now

DAY = timedelta(days=1)
LOCAL = ("localhost", "127.0.0.1")
PAST = datetime(2020, 1, 1, tzinfo=UTC)


class Site:
    """A folder with an authority, and what it gives out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.make(now())
        self.authority.write(folder)

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca.pem"

    def cloud(
        self, name: str = "cloud", *names: str, at: datetime | None = None, lifetime: timedelta = DAY
    ) -> Files:
        """A server's certificate for these hosts, by default this machine."""
        return self._keep(name, self.authority.server(names or LOCAL, at or now(), lifetime))

    def edge(
        self, node: str, *, at: datetime | None = None, lifetime: timedelta = DAY, name: str = ""
    ) -> Files:
        """A node's certificate."""
        return self._keep(name or node, self.authority.edge(node, at or now(), lifetime))

    def _keep(self, name: str, pair: Pair) -> Files:
        pair.write(self.folder, name)
        return Files(self.folder / f"{name}.pem", self.folder / f"{name}.key", self.ca)


def cloud_settings(files: Files) -> dict[str, object]:
    """The cloud's settings for them."""
    return {"tls_cert": files.certificate, "tls_key": files.key, "tls_client_ca": files.authority}


def edge_settings(files: Files) -> dict[str, object]:
    """The edge's settings towards the cloud for them."""
    return {
        "cloud_tls_ca": files.authority,
        "cloud_tls_cert": files.certificate,
        "cloud_tls_key": files.key,
    }
