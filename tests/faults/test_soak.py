"""A long time under mixed faults, beside all the other rows: nothing grows, and everybody is answered."""

import json

from tests.faults.flatness import Vital, growths, leaks
from tests.faults.row import Row
from tests.faults.soaking import GRACE_S, Soak
from tests.faults.table import Case, Finding

EXPECTED = {200, 400}  # the second for what is no image


def test_soak(soak: Soak, row: Row) -> None:
    status = soak.process.wait(soak.seconds + GRACE_S)
    assert status == 0, soak.log.read_text()[-3000:]
    told = json.loads(soak.report.read_text())
    vitals = {name: [Vital(**seen) for seen in looks] for name, looks in told["vitals"].items()}
    asked = sum(told["statuses"].values())
    failed = sum(count for code, count in told["statuses"].items() if int(code) not in EXPECTED)
    found = [line for name in ("edge", "cloud") for line in leaks(name, vitals[name])]
    grown = {name: growths(vitals[name])["resident"] for name in ("edge", "cloud")}
    memory = ", ".join(f"{name} {to / before - 1:+.1%}" for name, (before, to) in grown.items())
    late = f"{told['late']} of {asked} late, the latest {told['latest']:+.0f} ms from its deadline"
    figure = f"{soak.seconds:.0f} s, {told['faults']} faults, {late}, {memory}"
    twin = leaks("a program that leaks", vitals["leaky"])
    row.judge(
        Case(
            "soak with mixed faults",
            Finding(asked, failed, figure, tuple(found)),
            Finding(len(vitals["leaky"]), 0, "", tuple(twin)),
            "anything that lets go",
        )
    )
