"""The figures of joint inference by hand: rows, the oracle, and when a route has settled."""

from dataclasses import replace

import pytest

from benchmarks.conditions import FOUR_G, LAN, PROFILES, Profile
from benchmarks.lanes import Record, Route
from benchmarks.phases import ORACLE, Phase, gap_kept, oracle, right_ways, rows, settling, stood_still
from benchmarks.summary import targets

ROUTES = (Route("edge only", {}), Route("cascade", {}), Route("auto", {}, fixed=False))


def record(sample: int, seconds: float, *, right: bool = True, way: str = "edge", at: float = 0.0) -> Record:
    source = way if way in ("edge", "edge_fallback") else "cloud"
    return Record(sample, at, seconds, right, source, "", way, 0 if source == "edge" else 100, None)


def phase(
    edge: list[Record], cascade: list[Record], auto: list[Record], profile: Profile = PROFILES["4g"]
) -> Phase:
    records = {"edge only": edge, "cascade": cascade, "auto": auto}
    return Phase(
        "photos", [True] * len(edge), profile, ROUTES, records,
        {"edge only": 0, "cascade": 1000, "auto": 400}, {"edge only": 0.1, "cascade": 0.2, "auto": 0.2},
    )  # fmt: skip


@pytest.fixture
def four() -> Phase:
    wrong = replace(record(3, 0.002), right=False)
    return phase(
        [*(record(n, 0.002) for n in range(3)), wrong],
        [*(record(n, 0.003) for n in range(3)), record(3, 0.1, way="image")],
        [*(record(n, 0.003) for n in range(3)), record(3, 0.08, way="features.a.packed")],
    )


def test_rows_by_hand(four: Phase) -> None:
    table = {row.route: row for row in rows(four)}
    assert table["cascade"].mean == pytest.approx(0.10900 / 4)
    assert table["cascade"].bytes_up == 250
    assert table["edge only"].gap == pytest.approx(0.25)
    assert table["edge only"].doubt == pytest.approx(0.2165, abs=1e-3)
    assert table["auto"].gap == 0
    assert table["auto"].cpu_s == pytest.approx(0.05)
    assert table["auto"].shares == {"edge": 0.75, "features.a.packed": 0.25}


def test_the_oracle_takes_the_quickest_that_is_right(four: Phase) -> None:
    assert [r.seconds for r in oracle(four)] == [0.002, 0.002, 0.002, 0.1]
    row = rows(four)[-1]
    assert (row.route, row.accuracy, row.bytes_up) == (ORACLE, 1.0, 25)


def test_a_gap_is_kept_within_a_standard_error(four: Phase) -> None:
    row = rows(four)[0]
    assert gap_kept(row, 0.05)
    assert not gap_kept(row, 0.02)


def test_where_the_link_changes_the_cascade_is_the_measure(four: Phase) -> None:
    gone = [replace(r, right=False) for r in four.records["cascade"]]
    changing = replace(
        four, profile=PROFILES["drive"], records=four.records | {"cascade": gone, "auto": gone}
    )
    assert {row.route: row.gap for row in rows(changing)}["auto"] == 0
    steady = replace(changing, profile=PROFILES["4g"])
    assert {row.route: row.gap for row in rows(steady)}["auto"] == 1


def after(records: list[Record], start: float) -> tuple[int, float]:
    """Requests and seconds after the one change at `start`."""
    ((requests, seconds),) = settling(records, [start])
    return requests, round(seconds, 6)


def test_a_change_is_settled_when_wrong_ways_are_rare() -> None:
    before = [record(n, 0.01, way="image", at=n / 10) for n in range(10)]
    slow = [record(n, 0.5, way="image", at=1 + n / 10) for n in range(3)]
    quick = [record(n, 0.2, way="thin", at=1.3 + n / 10) for n in range(12)]
    assert after([*before, *slow, *quick], 1.0) == (3, 0.3)
    assert after([*before, *quick], 1.0) == (0, 0.0)
    assert right_ways([*slow, *quick]) == {"thin"}
    assert right_ways([*quick, record(1, 0.22, way="other")]) == {"thin", "other"}


def test_a_machine_that_stood_still_is_seen_by_the_edge_alone(four: Phase) -> None:
    assert not stood_still(four)
    busy = [replace(r, seconds=0.3) for r in four.records["edge only"]]
    assert stood_still(replace(four, records=four.records | {"edge only": busy}))
    slow = [replace(r, seconds=0.9) for r in four.records["cascade"]]
    assert not stood_still(replace(four, records=four.records | {"cascade": slow}))


def test_in_an_outage_the_fallback_is_right() -> None:
    late = [record(n, 0.5, way="image", at=n / 10) for n in range(2)]
    spared = [record(n, 0.002, way="edge_fallback", at=0.2 + n / 10) for n in range(8)]
    assert after([*late, *spared], 0.0) == (2, 0.2)


def test_a_stretch_that_never_settles_is_counted_to_its_end() -> None:
    ways = ["thin", "image"] * 6
    stretch = [record(n, 0.1 if w == "thin" else 0.5, way=w, at=n / 10) for n, w in enumerate(ways)]
    assert after(stretch, 0.0) == (12, 1.1)


def test_too_little_to_tell_is_left_out() -> None:
    assert settling([record(n, 0.1, way="image", at=0.1) for n in range(3)], [0.0]) == []


def test_aims_are_met_or_missed(four: Phase) -> None:
    lines = {line.what.partition(": ")[2]: line for line in targets([four])}
    assert lines["accuracy of auto"].met
    ratio = lines["mean latency of auto against the best fixed route that keeps the gap"]
    assert (ratio.met, ratio.measured.split(" times")[0]) == (True, "0.817")
    slower = [replace(r, seconds=3 * r.seconds) for r in four.records["auto"]]
    missed = targets([replace(four, records=four.records | {"auto": slower})])
    assert [line.met for line in missed] == [True, False]


def test_a_trace_is_judged_by_its_changes() -> None:
    profile = Profile("steps", (LAN,) * 3 + (FOUR_G,) * 3, "ours")
    cascade = [record(n, 0.3, way="image", at=n / 10) for n in range(60)]
    auto = [record(n, 0.1, way="image", at=n / 10) for n in range(60)]
    lines = targets([phase(cascade, cascade, auto, profile)])
    assert lines[-1].what.endswith("the right route after a change of the link")
    assert (lines[-1].met, lines[-1].measured[:6]) == (True, "1 of 1")
