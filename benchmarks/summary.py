"""What the benchmark of joint inference comes to: its aims, its tables and its section of the page."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import PAGE, machine, replace_section
from benchmarks.phases import ORACLE, Phase, Row, gap_kept, reference, rows, settling, stood_still
from benchmarks.plots import plot_means, plot_trace

GAP = 0.005  # of accuracy that a route may lose, to be compared at all
AUTO = "auto"
_MEAN_RATIO, _BYTES_RATIO, _MARGIN = 3.1, 5.0, 1.05
_REQUESTS, _SECONDS = 20, 2.0
_FALLBACK, _MOST_ALONE = "edge_fallback", 0.2
_FAR = ("3g", "4g")  # where bytes and round trips are dear


@dataclass(frozen=True)
class Line:
    """One aim: what it is about, what was measured, what was meant to be, and whether it is."""

    what: str
    measured: str
    aim: str
    met: bool


def targets(phases: list[Phase]) -> list[Line]:
    """Every aim, held against what was measured."""
    lines = _accuracies(phases)
    for phase in phases:
        table = {row.route: row for row in rows(phase)}
        where = f"{phase.workload} over {phase.profile.name}{' (machine busy)' * stood_still(phase)}"
        auto = table[AUTO]
        able = keeping(phases, phase.workload)
        fixed = [table[name] for name in able if gap_kept(table[name], GAP)]
        if fixed:
            best = min(fixed, key=lambda row: row.mean)
            ratio = auto.mean / best.mean
            limit = _MARGIN if phase.profile.steady else 1.0
            lines.append(
                Line(
                    f"{where}: mean latency of auto against the best fixed route that keeps the gap",
                    f"{ratio:.3f} times ({1000 * auto.mean:.1f} ms, {best.route}: {1000 * best.mean:.1f} ms)",
                    f"at most {limit:g} times",
                    ratio <= limit,
                )
            )
        lines += _against_the_cloud(phase, table, where)
        if not phase.profile.steady:
            lines += _noticed(phase, where)
    return lines


def keeping(phases: list[Phase], workload: str) -> list[str]:
    """The fixed routes that lose no more than `GAP` over all profiles together, a standard error granted."""
    own = [phase for phase in phases if phase.workload == workload]
    names = [route.name for route in own[0].routes if route.fixed]
    found = []
    for name in names:
        lost = [
            float(best) - float(record.right)
            for phase in own
            for best, record in zip(reference(phase), phase.records[name], strict=True)
            if record.source != _FALLBACK
        ]
        if lost and statistics.fmean(lost) <= GAP + statistics.pstdev(lost) / len(lost) ** 0.5:
            found.append(name)
    return found


def _accuracies(phases: list[Phase]) -> list[Line]:
    """What auto loses, for each workload over all steady links together and over all changing ones: one
    profile alone has too few requests to tell."""
    lines = []
    for name in dict.fromkeys(phase.workload for phase in phases):
        for kind, steady in (("steady links", True), ("changing links, against the cascade", False)):
            lost = [
                float(best) - float(record.right)
                for phase in phases
                if phase.workload == name and phase.profile.steady == steady
                for best, record in zip(reference(phase), phase.records[AUTO], strict=True)
            ]
            if lost:
                gap, doubt = statistics.fmean(lost), statistics.pstdev(lost) / len(lost) ** 0.5
                lines.append(
                    Line(
                        f"{name} over all {kind}: accuracy of auto",
                        f"{100 * gap:.2f} points lost, +-{100 * doubt:.2f} ({len(lost):,} requests)",
                        "at most 0.5 points",
                        gap <= GAP,
                    )
                )
    return lines


def _against_the_cloud(phase: Phase, table: dict[str, Row], where: str) -> list[Line]:
    cloud = table.get("cloud only, JPEG") or table.get("cloud only, raw")
    auto, found = table[AUTO], list[Line]()
    if cloud is None or cloud.shares.get(_FALLBACK, 0.0) > _MOST_ALONE:
        return found  # it is not the cloud that answers there
    if phase.profile.name in _FAR:
        ratio = cloud.mean / auto.mean
        found.append(
            Line(
                f"{where}: mean latency, {cloud.route} against auto", f"{ratio:.1f} times",
                f"at least {_MEAN_RATIO} times", ratio >= _MEAN_RATIO and gap_kept(auto, GAP),
            )
        )  # fmt: skip
    if phase.profile.name in _FAR and cloud.route.endswith("JPEG"):
        ratio = cloud.bytes_up / max(auto.bytes_up, 1e-9)
        ideal = cloud.bytes_up / max(table[ORACLE].bytes_up, 1e-9)
        found.append(
            Line(
                f"{where}: bytes up on the wire, {cloud.route} against auto",
                f"{ratio:.1f} times (oracle: {ideal:.1f} times)",
                f"at least {_BYTES_RATIO:g} times", ratio >= _BYTES_RATIO and gap_kept(auto, GAP),
            )
        )  # fmt: skip
    return found


def _noticed(phase: Phase, where: str) -> list[Line]:
    trace = phase.profile.trace
    length = max(record.at for record in phase.records[AUTO])
    starts = [
        float(second)
        for second in range(1, int(length) + 1)
        if trace[second % len(trace)] != trace[(second - 1) % len(trace)]
    ]
    found = settling(phase.records[AUTO], starts) if starts else []
    if not found:
        return []
    within = [requests <= _REQUESTS or seconds <= _SECONDS for requests, seconds in found]
    worst = max(found, key=lambda one: one[1])
    return [
        Line(
            f"{where}: the right route after a change of the link",
            f"{sum(within)} of {len(within)} in time; at worst after {worst[0]} requests, {worst[1]:.1f} s",
            f"within {_REQUESTS} requests or {_SECONDS:g} s",
            all(within),
        )
    ]


def told(row: Row) -> str:
    """One line of progress."""
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in list(row.shares.items())[:4])
    return (
        f"  {row.route:18} n {row.requests:4}  {row.accuracy:7.2%}  mean {1000 * row.mean:7.1f} "
        f"p50 {1000 * row.p50:7.1f} p95 {1000 * row.p95:7.1f} p99 {1000 * row.p99:7.1f} ms  "
        f"{row.bytes_up:9.0f} B  {1000 * row.cpu_s:6.2f} cpu-ms  {shares}"
    )


def section(phases: list[Phase], lines: list[Line], titles: dict[str, str], page: Path = PAGE) -> None:
    """Write the plots beside `page`, and its section."""
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    parts = ["## Joint inference", "", _intro(), ""]
    parts += ["| aim | measured | meant | met |", "|---|---|---|:-:|"]
    parts += [f"| {x.what} | {x.measured} | {x.aim} | {'yes' if x.met else '**no**'} |" for x in lines]
    for name, title in titles.items():
        own = [phase for phase in phases if phase.workload == name]
        parts += ["", f"### {title[0].upper()}{title[1:]}", ""]
        plot_means(own, figures / f"joint-{name}.svg")
        parts += [f"![mean latency by route and profile](figures/joint-{name}.svg)", ""]
        for phase in own:
            if len(phase.profile.trace) > 10:
                file = f"joint-{name}-{phase.profile.name}.svg"
                plot_trace(phase, figures / file)
                parts += [f"![{phase.profile.name}, second by second](figures/{file})", ""]
        for phase in own:
            parts += _table(phase)
    replace_section(page, "joint", "\n".join(parts))


def _intro() -> str:
    return f"""\
Printed by `make bench-joint` on {machine()}.
Every route has an edge node and an emulated link of its own, all one cloud, and they get the same requests at
the same time (over lan and wifi one after the other). Latency is what the device sees, the deadline is 1 s.
Bytes are those on the wire, with probes and framing (the oracle's: of its messages). The energy proxy is the
edge node's processor time. Accuracy is held against the full model's on the same requests; where the link
changes, against the cascade's, since nobody has the full model while it is away. Routes that lose over
{100 * GAP:g} points, a standard error granted, are not compared. The oracle knew
every outcome of the fixed routes, and took the quickest right one."""


def _table(phase: Phase) -> list[str]:
    table = rows(phase)
    profile = phase.profile
    lines = [f"**{profile.name}** ({profile.source}), {table[0].requests} requests", ""]
    if stood_still(phase):
        lines += ["The machine was busy with something else in this one: its times say little.", ""]
    lines.append("| route | accuracy | mean | p50 | p95 | p99 ms | bytes up | edge CPU ms | answered by |")
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for row in table:
        times = " | ".join(f"{1000 * value:.1f}" for value in (row.mean, row.p50, row.p95, row.p99))
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in row.shares.items())
        name = row.route if gap_kept(row, GAP) else f"{row.route}¹"
        cpu = "" if row.route == ORACLE else f"{1000 * row.cpu_s:.1f}"
        lines.append(f"| {name} | {row.accuracy:.2%} | {times} | {row.bytes_up:,.0f} | {cpu} | {shares} |")
    return [*lines, "", "¹ loses too much accuracy to be compared", ""]
