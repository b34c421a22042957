"""Both services for a long time, under a light load and every fault in turn; a process of its own, so that it
can run beside everything else: `python -m tests.faults.soak SECONDS SEED REPORT`.

The report is JSON: what each process took at every look, and what became of the requests.
"""

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bundles import SURE, UNSURE, picture, write_bundle
from tests.faults.flatness import Vital
from tests.faults.watched import descriptors
from tests.joint.admin import point, reload
from tests.joint.canary import CANARY
from tests.joint.device import Device, Load
from tests.joint.proxy import REFUSE, SILENT, Fault, Proxy
from tests.joint.services import ROOT, Service, Services, get

RATE = 8.0
DEADLINE_MS = 1000
FAULT_S, BETWEEN_S = 2.0, 3.0
LOOKS = 100  # in all, and no more than one a second
VERSIONS = 2
LINK_FAULTS = (
    REFUSE, SILENT, Fault(delay_s=0.3), Fault(cut_answers=True), Fault(garble=True), Fault(drip_s=0.01),
    Fault(reset_first=True),
)  # fmt: skip
IMAGES = (picture(SURE), picture(UNSURE), picture(UNSURE, "JPEG"), b"no image")


class Site:
    """An edge and a cloud with outbox and samples, a link between them that fails, and bundles that move."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._bundles = [write_bundle(folder / f"v{n}", version=str(n)) for n in range(VERSIONS)]
        self._current = point(folder / "current", self._bundles[0])
        self._version = 0
        services = stack.enter_context(Services(folder))
        self.cloud = services.cloud(self._current, samples=folder / "samples.db").wait_ready()
        self._proxy = stack.enter_context(Proxy(self.cloud.ports[1]))
        self.edge = services.edge(self._current, self._proxy.port, outbox=folder / "outbox.db").wait_ready()
        device = Device(self.edge.ports[0])
        for _ in range(3):  # every series that there will be is there before the first look
            device.predict(IMAGES[1], deadline_ms=DEADLINE_MS, keep="true")

    def suffer(self, chance: random.Random) -> None:
        """One fault, begun and ended."""
        turn = chance.randrange(len(LINK_FAULTS) + 2)
        if turn < len(LINK_FAULTS):
            self._proxy.begin(LINK_FAULTS[turn])
            time.sleep(FAULT_S)
            self._proxy.heal()
        elif turn == len(LINK_FAULTS):
            self.cloud.signal(signal.SIGSTOP)
            time.sleep(FAULT_S)
            self.cloud.signal(signal.SIGCONT)
        else:
            self._version = (self._version + 1) % VERSIONS
            point(self._current, self._bundles[self._version])
            for service in (self.cloud, self.edge):
                status, said = reload(service)
                if status != 200:
                    raise RuntimeError(f"{service.name} does not reload: {said}")


def look(process: subprocess.Popen[Any], port: int) -> Vital:
    """What a process takes now."""
    _, page = get(port, "/metrics")
    status = Path(f"/proc/{process.pid}/status").read_text()
    series = [line for line in page.splitlines() if not line.startswith("#")]
    tasks = next(float(line.split()[1]) for line in series if line.startswith("tandem_loop_tasks"))
    return Vital(
        int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) << 10,
        descriptors(process.pid),
        int(re.findall(r"Threads:\s+(\d+)", status)[0]),
        int(tasks),
        len(series),
    )


def leaking(stack: ExitStack) -> tuple[subprocess.Popen[str], int]:
    """The process that leaks, and the port of its metrics."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.leaky"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    return process, int(process.stdout.readline().partition("=")[2])


def soak(seconds: float, seed: int, report: Path) -> None:
    """Look and suffer by turns for so long, then tell."""
    chance, started = random.Random(seed), time.monotonic()
    vitals: dict[str, list[Vital]] = {"edge": [], "cloud": [], "leaky": []}
    statuses: Counter[int] = Counter()
    faults, late = 0, list[float]()
    with ExitStack() as stack:
        CANARY.start()
        stack.callback(CANARY.stop)
        site = Site(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        processes: dict[str, tuple[subprocess.Popen[Any], int]] = {
            "edge": _of(site.edge), "cloud": _of(site.cloud), "leaky": leaking(stack)
        }  # fmt: skip
        while time.monotonic() - started < seconds:
            with Load(site.edge.ports[0], IMAGES, rate=RATE, deadline_ms=DEADLINE_MS) as load:
                until = min(started + seconds, time.monotonic() + max(1.0, seconds / LOOKS))
                while time.monotonic() < until:
                    site.suffer(chance)
                    faults += 1
                    load.go_on(BETWEEN_S)
            statuses.update(a.status for a in load.answers)
            late += [a.late_ms - a.stalled_ms for a in load.answers]
            for name, (process, port) in processes.items():
                vitals[name].append(look(process, port))
    report.write_text(
        json.dumps(
            {
                "vitals": {name: [asdict(vital) for vital in seen] for name, seen in vitals.items()},
                "statuses": statuses,
                "late": sum(ms > 0 for ms in late),
                "latest": max(late),
                "faults": faults,
            }
        )
    )


def _of(service: Service) -> tuple[subprocess.Popen[Any], int]:
    return service.process, service.ports[2]


def _end(*_: object) -> None:
    sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    soak(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
