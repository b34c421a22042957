"""Tandem's edge node beside a raw ONNX Runtime loop and its peers: `make bench-serving`.

`python -m benchmarks.serving --out docs/benchmarks.md`; without `--out` it prints only. `--help` says how to
measure less. Servers get one core and the client another; every system has its turn in every round.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import jpegs, models, peers, ways
from benchmarks.ceiling import Ceiling, ceilings
from benchmarks.hop import hops
from benchmarks.models import Served
from benchmarks.page import machine, replace_section
from benchmarks.processes import Cores, Failed, awake, pinned
from benchmarks.report import FLOOR, JPEG, ONE_BY_ONE, TANDEM, Peer, Report
from benchmarks.rounds import OPEN, Cell, Entry, Figures, Part, Results, play
from benchmarks.systems import RawLoop, Server, edge, floor
from benchmarks.tables import section, stages
from benchmarks.targets import evaluate

CACHE = Path(".cache/bench-serving")
FEW, MANY = (1, 8), 32
KINDS = ("binary", "json", "grpc")
PARTS = ("tiny", "mid", "jpeg", "hop")
UNBATCHED = {"max_batch": 1}


def say(line: str) -> None:
    """Progress, beside the report."""
    print(line, file=sys.stderr, flush=True)


class Stand:
    """The servers that are measured in the same rounds; all are ended with `stack`."""

    def __init__(self, chosen: argparse.Namespace, core: int, logs: Path, stack: ExitStack) -> None:
        self._chosen = chosen
        self._core = core
        self._logs = logs
        self._stack = stack
        self._raws: dict[str, RawLoop] = {}
        self._entries: list[Entry] = []

    def add_tandem(
        self, model: Served, parts: Sequence[Part], name: str = TANDEM, **settings: object
    ) -> None:
        """An edge node with `model`, and the raw loop with the same file."""
        if model.name not in self._raws:
            self._raws[model.name] = RawLoop(model, self._core, self._logs)
            self._stack.callback(self._raws[model.name].stop)
        log = self._logs / f"{name}-{model.name}.log".replace(" ", "-")
        asked = [part.way for part in parts]
        server = edge(name, model.bundle, asked, self._core, log, {**self._chosen.settings, **settings})
        self._add(server, model, parts)

    def add_floor(self, model: Served, seconds: float) -> None:
        """What stands under Tandem, with `model`."""
        asked = [ways.oip_binary(model), ways.grpc_infer(model)]
        server = floor(FLOOR, model, asked, self._core, self._logs / f"floor-{model.name}.log")
        self._add(server, model, [Part(way, FEW, seconds) for way in asked])

    def add_peer(self, name: str, model: Served, seconds: float, report: Report) -> None:
        """A peer with `model`, or in the report why it is not there."""
        try:
            server = peers.start(name, model, self._core, self._logs)
        except Failed as error:
            say(f"{name}: {error}")
            report.missing[name] = " ".join(str(error).split())[:300]
            return
        for way in server.ways:
            peer = Peer(name, way.name, way.kind)
            report.peers = [*report.peers, *([] if peer in report.peers else [peer])]
        self._add(server, model, [Part(way, FEW, seconds) for way in server.ways])

    def measure(self, report: Report) -> None:
        """All rounds; then how much memory each has held, and how long each took to be ready."""
        play(self._entries, self._raws, self._chosen.rounds, report.results, say)
        for entry in self._entries:
            key = entry.model.name, entry.server.name
            report.peaks[key], report.ready_s[key] = entry.server.peak_bytes, entry.server.ready_s

    def _add(self, server: Server, model: Served, parts: Sequence[Part]) -> None:
        self._stack.callback(server.stop)
        self._entries.append(Entry(server, model, parts))


def network(name: str, stand: Stand, chosen: argparse.Namespace, report: Report) -> None:
    """Both precisions of one network with Tandem, FP32 with the peers."""
    seconds = chosen.seconds * (1 if name == "tiny" else 1.5)
    for model in models.build(name, CACHE.resolve()).values():
        small = model.precision != "fp32"
        asked = [ways.oip_binary(model), ways.device(model)]
        asked += [] if small else [ways.oip_json(model), ways.grpc_infer(model)]
        asked = [way for way in asked if way.kind in chosen.ways]
        parts = [Part(way, [n for n in FEW if n in chosen.clients], seconds) for way in asked]
        if not small and MANY in chosen.clients:
            # Longer, to see the slowest of many.
            parts += [Part(way, (MANY,), 2 * seconds) for way in asked]
            parts += [Part(way, (OPEN,), 2 * seconds) for way in asked if way.kind == "binary"]
        stand.add_tandem(model, parts)
        if name == "tiny" and not small:
            stand.add_tandem(model, [Part(ways.oip_binary(model), FEW, seconds)], ONE_BY_ONE, **UNBATCHED)
        if not small:
            stand.add_floor(model, seconds)
            for peer in chosen.peers:
                if peer not in report.missing:
                    stand.add_peer(peer, model, seconds, report)
    stand.measure(report)


def images(stand: Stand, chosen: argparse.Namespace, report: Report) -> None:
    """The CIFAR-10 bundle, asked with a JPEG."""
    content = jpegs.photo(chosen.data)
    served, label = jpegs.serve(content)
    stand.add_tandem(served, [Part(ways.image(served.name, content, label), FEW, chosen.seconds)])
    stand.measure(report)
    one = Cell(served.name, TANDEM, JPEG, 1)
    total_us = report.results.median(one, lambda figures: figures.p50_us)
    report.stages = stages(report.results.stages(one), total_us, jpegs.decoding_ms(content))


def _raw(results: Results) -> dict[str, Figures]:
    """The raw loop's medians by model, from all the times that it ran beside something."""
    by_model: dict[str, list[Figures]] = {}
    for cell, runs in results.runs.items():
        by_model.setdefault(cell.model, []).extend(runs)
    found = {}
    for model, runs in by_model.items():
        per_s, p50 = median(run.raw_per_s for run in runs), median(run.raw_p50_us for run in runs)
        found[model] = Figures(per_s, p50, p50, per_s, p50)
    return found


def run(chosen: argparse.Namespace, cores: Cores, logs: Path, missing: Mapping[str, str]) -> Report:
    """Measure what was chosen; `missing` are the peers that are not installed, and why."""
    report = Report(Results(), missing=dict(missing))
    with pinned(cores.client):
        asleep = list(ceilings(cores.server, logs, chosen.seconds))
        with awake(cores.server):
            report.told.append(_ceiling(asleep, list(ceilings(cores.server, logs, chosen.seconds))))
            for part in chosen.parts:
                if part == "hop":
                    report.hops = list(hops(cores, logs, chosen.seconds))
                    continue
                with ExitStack() as stack:
                    stand = Stand(chosen, cores.server, logs, stack)
                    if part == "jpeg":
                        images(stand, chosen, report)
                    else:
                        network(part, stand, chosen, report)
    report.raw = _raw(report.results)
    report.targets = list(evaluate(report))
    return report


def _ceiling(asleep: Sequence[Ceiling], rested: Sequence[Ceiling]) -> str:
    """What the load generator reaches against servers that do nothing, in words."""
    most = ", ".join(
        f"{one.per_s:,.0f} {one.protocol} requests a second" for one in rested if one.clients > 1
    )
    floor, sleepy = (
        " and ".join(f"{one.p50_us:.0f} us ({one.protocol})" for one in found if one.clients == 1)
        for found in (rested, asleep)
    )
    return (
        f"The load generator reaches {most} at 8 clients against servers that do nothing; at 1 client "
        f"loopback, such a server and the client take {floor}. A process of idle priority keeps the servers' "
        "core from sleeping, since waking it is the machine's time and no server's: without that it is "
        f"{sleepy}."
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__.partition("\n")[0])
    photos = os.environ.get("TANDEM_CIFAR10")
    default = Path(photos) / "test.zip" if photos else None
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 test photos; TANDEM_CIFAR10 too")
    parser.add_argument("--out", type=Path, help="the page whose section is replaced")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything has its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement of the small model")
    parser.add_argument("--quick", action="store_true", help="one short round: to see that it works")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--ways", nargs="+", choices=KINDS, default=KINDS, help="how Tandem is asked")
    parser.add_argument("--clients", nargs="+", type=int, default=(*FEW, MANY), help="of 1, 8 and 32")
    parser.add_argument("--peers", nargs="*", choices=tuple(peers.PEERS), default=tuple(peers.PEERS))
    parser.add_argument(
        "--set", nargs="+", default=(), metavar="NAME=VALUE", help="settings of the edge node"
    )
    chosen = parser.parse_args(words)
    chosen.settings = dict(one.split("=", 1) for one in chosen.set)
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 0.2
    return chosen


def main(words: Sequence[str]) -> None:
    """Measure, print, and write where asked."""
    chosen = parse(words)
    CACHE.mkdir(parents=True, exist_ok=True)
    installing = time.monotonic()
    missing = peers.install(chosen.peers, say)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tandem-serving-") as logs:
        report = run(chosen, Cores.of_this_machine(), Path(logs), missing)
    took = time.monotonic() - started
    report.told.insert(
        0,
        f"Measured by `make bench-serving` on {machine()}. Servers and client have one core each, and "
        f"everywhere there is one worker with one thread. Medians of {chosen.rounds} interleaved rounds. It "
        f"took {took / 60:.0f} minutes, and {(started - installing) / 60:.0f} to install the peers.",
    )
    text = section(report)
    print(text)
    if chosen.out:
        replace_section(chosen.out, "serving", text)


if __name__ == "__main__":
    main(sys.argv[1:])
