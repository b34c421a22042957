"""Certificates, keys and authorities that are made anew under load: no answer is lost or degraded by it."""

from pathlib import Path

from inference_core.certificate import Files
from tests.bundles import UNSURE, picture, write_bundle
from tests.certificates import Site, cloud_settings, edge_settings
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.faults.test_strangers import https
from tests.joint.device import Answers, Device, Load
from tests.joint.services import Service, Services, eventually, free_port
from toolchain.authority import Authority, now, write_private

DEADLINE_MS = 3000  # a call that is lost on the way has no answer by then, a slow machine has
RATE = 50.0
NAME = "localhost"
NODE = "edge-1"
IMAGE = picture(UNSURE)
# What the breaker spares would not be asked of the cloud, and so would show nothing.
NO_BREAKER = {"breaker_failures": 1000, "breaker_share": 1.0, "breaker_window": 1000}
IN_USE = "changed and is in use"
NOT_USED = "changed and cannot be used"


class Rotation:
    """An edge and a cloud, whose certificates are made anew under load."""

    def __init__(self, services: Services, folder: Path) -> None:
        self._services = services
        self.site = Site(folder / "site")
        self._bundle = write_bundle(folder / "colors")
        self._port = free_port()
        self.cloud = self.start()
        settings = edge_settings(self.site.edge(NODE)) | NO_BREAKER
        settings |= {"bundles": self._bundle, "cloud": f"{NAME}:{self._port}"}
        self.edge = services.start("edge_node", "edge", settings).wait_ready()
        device = Device(self.edge.ports[0])
        eventually(
            lambda: device.predict(IMAGE, deadline_ms=DEADLINE_MS).source == "cloud", 10, "the edge is in"
        )
        self.steps = (
            self._renew_the_clouds,
            self._renew_the_edges_by_halves,
            self._add_an_authority,
            self._certify_both_by_it,
            self._take_the_old_authority_out,
        )

    def start(self) -> Service:
        """A cloud with a new certificate."""
        settings = cloud_settings(self.site.cloud())
        settings |= {"bundles": self._bundle, "threads": 1, "grpc_port": self._port}
        cloud = self._services.start("cloud_service", "cloud", settings)
        eventually(lambda: " ready: " in cloud.log, 20, "the cloud is ready")
        return cloud

    def load(self) -> Load:
        """Devices, all of whose questions go up."""
        return Load(self.edge.ports[0], [IMAGE], rate=RATE, deadline_ms=DEADLINE_MS)

    def renew(self, turn: int) -> None:
        """The next step of what a site does in the course of years."""
        self.steps[turn % len(self.steps)]()

    def lets_in(self, node: Files) -> bool:
        """Whether the cloud still knows a node's certificate."""
        return https(self.cloud.ports[0], node)

    def _renew_the_clouds(self) -> None:
        taken = self._seen(self.cloud)
        self.site.cloud()
        self._taken_by((self.cloud, taken))

    def _renew_the_edges_by_halves(self) -> None:
        """First a certificate that does not fit the key, as one who is slow at it has it for a while."""
        taken, refused = self._seen(self.edge), self.edge.log.count(NOT_USED)
        other = self.site.edge(NODE, name="beside").certificate
        assert other is not None
        write_private(self.site.folder / f"{NODE}.pem", other.read_bytes())
        eventually(lambda: self.edge.log.count(NOT_USED) > refused, 10, "half of it is not used")
        self.site.edge(NODE)
        self._taken_by((self.edge, taken))

    def _add_an_authority(self) -> None:
        taken = self._seen(self.cloud), self._seen(self.edge)
        old = self.site.ca.read_bytes()
        self.site.authority = Authority.make(now())
        fresh = self.site.folder / "fresh"
        fresh.mkdir(exist_ok=True)
        self.site.authority.write(fresh)
        write_private(self.site.ca, old + (fresh / "ca.pem").read_bytes())
        self._taken_by((self.cloud, taken[0]), (self.edge, taken[1]))

    def _certify_both_by_it(self) -> None:
        taken = self._seen(self.cloud), self._seen(self.edge)
        self.site.cloud()
        self.site.edge(NODE)
        self._taken_by((self.cloud, taken[0]), (self.edge, taken[1]))

    def _take_the_old_authority_out(self) -> None:
        taken = self._seen(self.cloud), self._seen(self.edge)
        self.site.authority.write(self.site.folder)
        self._taken_by((self.cloud, taken[0]), (self.edge, taken[1]))

    def _seen(self, service: Service) -> int:
        return service.log.count(IN_USE)

    def _taken_by(self, *before: tuple[Service, int]) -> None:
        eventually(
            lambda: all(self._seen(service) > taken for service, taken in before),
            10,
            "what is new is in use",
        )


def judged(load: Load, trials: int, *broken: str) -> Finding:
    """How many answers failed, or were not those that the policy wanted."""
    bad = Answers(
        a for a in load.answers if a.status != 200 or a.source != "cloud" or a.late_ms > a.stalled_ms
    )
    figure = f"{len(bad)} of {len(load.answers)} failed or degraded"
    if bad:
        figure += ": " + ", ".join(f"{count} {why}" for (_, why), count in bad.who.most_common())
    return Finding(trials, min(trials, len(bad)), figure, broken)


def test_rotation_under_load(services: Services, tmp_path: Path, row: Row) -> None:
    turns = row.count(10, 400)
    rotation = Rotation(services, tmp_path)
    of_the_first = rotation.site.edge("edge-2")
    assert rotation.lets_in(of_the_first)
    with rotation.load() as load:
        for turn in range(turns):
            rotation.renew(turn)
            load.go_on(0.2)
            row.progress(turn, turns, "rotations")
    assert rotation.lets_in(rotation.site.edge("edge-3"))
    trusted = rotation.lets_in(of_the_first)
    broken = ("an authority that was taken out is still trusted",) if trusted else ()
    found = judged(load, turns, *broken)
    with rotation.load() as load:
        rotation.cloud.stop()
        rotation.start()
    row.judge(Case("TLS: rotation under load", found, judged(load, 1), "renewal, by a restart"))
