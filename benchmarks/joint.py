"""Joint inference over links of every kind: each route side by side with `auto`, in one run.

`make bench-joint`, or `python -m benchmarks.joint --data TEST.zip`, where TEST holds CIFAR-10 test photos;
without it the photos are left out, and said to be. Writes its section of docs/benchmarks.md and its plots.
About twelve minutes on two cores; `--quick` takes one and writes nothing.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from benchmarks.conditions import PERFECT, PROFILES, Profile
from benchmarks.lanes import Lanes, Record, Sample, keep_pace, take_turns
from benchmarks.phases import Phase, rows, stillness, stood_still
from benchmarks.summary import section, targets, told
from benchmarks.workloads import Workload, photos, vibrations

STEADY = ("lan", "wifi", "5g", "4g", "3g", "satellite")
CHANGING = ("flapping", "drive", "commute")
_IN_TURNS = frozenset({"lan", "wifi"})  # too quick to be measured while others run
_TURNS_S, _PACED_S = 14.0, 24.0
_WARM_UP = 12  # requests of each lane before those that count, so that the link is known


async def run(workload: Workload, profiles: list[Profile], *, share: float = 1.0) -> list[Phase]:
    """Every profile in turn, over the same processes; `share` of the usual time is spent on each."""
    say(f"{workload.title}: starting {len(workload.routes)} edge nodes and a cloud")
    phases = []
    full_right = workload.full_right()
    supply = _supply(workload.samples)
    async with Lanes(workload.bundle, workload.routes, deadline_ms=workload.deadline_ms) as lanes:
        for profile in profiles:
            phase = await _phase(workload, full_right, profile, lanes, supply, share)
            if stood_still(phase):
                say(f"the machine stood still in {profile.name}: once more")
                again = await _phase(workload, full_right, profile, lanes, supply, share)
                phase = min(phase, again, key=stillness)
            phases.append(phase)
            for row in rows(phase):
                say(told(row))
    return phases


def _supply(samples: list[Sample]) -> Iterator[tuple[int, Sample]]:
    """The samples with their numbers, again and again."""
    while True:
        yield from enumerate(samples)


async def _phase(
    workload: Workload,
    full_right: list[bool],
    profile: Profile,
    lanes: Lanes,
    supply: Iterator[tuple[int, Sample]],
    share: float,
) -> Phase:
    lanes.links.set(profile.trace[0])
    started = time.monotonic()
    await take_turns(lanes.lanes, list(islice(supply, _WARM_UP)), 6.0 * share)
    before = [count.up for count in lanes.links.counts()], [lane.cpu_s for lane in lanes.lanes]
    records = await _record(workload, profile, lanes, supply, share)
    after = [count.up for count in lanes.links.counts()], [lane.cpu_s for lane in lanes.lanes]
    say(f"{workload.name} over {profile.name}, {time.monotonic() - started:.0f} s")
    lanes.links.set(PERFECT)  # what is left on the way must not meet the next profile
    names = [lane.route.name for lane in lanes.lanes]
    return Phase(
        workload.name,
        full_right,
        profile,
        tuple(workload.routes),
        records,
        {name: now - then for name, then, now in zip(names, before[0], after[0], strict=True)},
        {name: now - then for name, then, now in zip(names, before[1], after[1], strict=True)},
    )


async def _record(
    workload: Workload,
    profile: Profile,
    lanes: Lanes,
    supply: Iterator[tuple[int, Sample]],
    share: float,
) -> dict[str, list[Record]]:
    if profile.name in _IN_TURNS:
        return await take_turns(lanes.lanes, list(islice(supply, 5000)), _TURNS_S * share)
    seconds = (_PACED_S if len(profile.trace) < _PACED_S else len(profile.trace)) * share
    count = max(10, int(seconds / workload.pace_s))
    replay = asyncio.create_task(_replay(lanes, profile, seconds))
    try:
        return await keep_pace(lanes.lanes, list(islice(supply, count)), workload.pace_s)
    finally:
        replay.cancel()


async def _replay(lanes: Lanes, profile: Profile, seconds: float) -> None:
    """The profile's trace, second by second, from the beginning."""
    began = time.monotonic() + 0.05
    for second in range(int(seconds) + 1):
        await asyncio.sleep(max(0.0, began + second - time.monotonic()))
        conditions = profile.trace[second % len(profile.trace)]
        if second == 0 or conditions != profile.trace[(second - 1) % len(profile.trace)]:
            await asyncio.to_thread(lanes.links.set, conditions)


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure joint inference over links of every kind.")
    folder = os.environ.get("TANDEM_CIFAR10")
    default = Path(folder) / "test.zip" if folder else None
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 test photos; TANDEM_CIFAR10 too")
    parser.add_argument("--only", choices=("photos", "vibrations"), help="leave the other workload out")
    parser.add_argument("--profiles", default=",".join((*STEADY, *CHANGING)), help="comma separated")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, and no page")
    parser.add_argument("--no-page", action="store_true", help="print only")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.profiles.split(",") if name not in PROFILES]
    if unknown:
        parser.error(f"--profiles: {unknown[0]!r} is not one of {', '.join(PROFILES)}")
    profiles = [PROFILES[name] for name in arguments.profiles.split(",")]
    workloads = []
    if arguments.only != "vibrations":
        if arguments.data is None:
            say("no photos given: that part is missing; --data or TANDEM_CIFAR10 names them")
        else:
            workloads.append(photos(arguments.data))
    if arguments.only != "photos":
        say("making the sensor's bundle, if it is not there")
        workloads.append(vibrations())
    started = time.monotonic()
    share = 0.1 if arguments.quick else 1.0
    phases = [phase for work in workloads for phase in asyncio.run(run(work, profiles, share=share))]
    lines = targets(phases)
    for line in lines:
        say(f"{'met   ' if line.met else 'MISSED'} {line.what}: {line.measured} (aim: {line.aim})")
    say(f"{time.monotonic() - started:.0f} s")
    if not (arguments.quick or arguments.no_page):
        section(phases, lines, {work.name: work.title for work in workloads})
    sys.exit(0)


if __name__ == "__main__":
    main()
