"""The section of the page: what was measured, what failed and why, and each aim's verdict."""

from benchmarks.report import BINARY, JPEG, TANDEM, Hop, Peer, Report, Target
from benchmarks.rounds import OPEN, Cell, Figures, Results
from benchmarks.tables import section, stages


def full() -> Report:
    results = Results()
    for clients, per_s in ((1, 3000.0), (8, 4321.0)):
        results.add(Cell("tiny", TANDEM, BINARY, clients), Figures(per_s, 250.4, 400, 5000, 200))
        results.add(Cell("tiny", "Other", "JSON", clients), Figures(per_s / 4, 1000, 2000, 5000, 200))
        results.add(Cell("cifar10", TANDEM, JPEG, clients), Figures(2555, 400, 500, 5000, 200))
    results.add(Cell("mid", TANDEM, BINARY, OPEN), Figures(190, 4100, 9000, 270, 3700))
    results.failures[Cell("mid", "Other", "JSON", 8)] = "3 errors (wrong: off by 1)"
    report = Report(results, [Peer("Other", "JSON", "json")], {("tiny", TANDEM): 121_600_000})
    report.ready_s["tiny", TANDEM] = 0.625
    report.raw["tiny"] = Figures(5000, 200, 200, 5000, 200)
    report.missing["Absent"] = "cannot be installed: no such thing"
    report.stages = {"inference": 0.2514}
    report.hops = [Hop("a way", 150_000, 170.4, 300)]
    report.targets = [
        Target("this", "at least 1", "2", met=True),
        Target("that", "at most 1", "2", met=False),
    ]
    report.told = ["Measured somewhere."]
    return report


def test_everything_is_on_the_page() -> None:
    lines = section(full()).splitlines()
    assert lines[0] == "## Serving"
    for line in (
        "Measured somewhere.",
        "| raw ONNX Runtime, one thread | 200 |  | 5,000 |  |  |  |  |  |  |",
        "| Tandem, OIP binary | 250 | 400 | 3,000 | 4,321 |  |  |  | 122 | 0.62 |",
        "| Other, JSON | 1,000 | 2,000 | 750 | 1,080 |  |  |  |  |  |",
        "| Absent | cannot be installed: no such thing |  |  |  |  |  |  |  |  |",
        "* Other, JSON, mid, 8 clients: 3 errors (wrong: off by 1)",
        "| tiny FP32, OIP binary | 5,000 | 50 | 0.60 | 0.86 |  | 0.25 |  |",
        "| mid FP32, OIP binary | 190 | 4,100 | 9,000 | 3,700 |",
        "| inference | 0.251 |",
        "| answers per second at 8 | 2,555 |",
        "| a way | 150 | 170 | 300 |",
        "1 of 2 met.",
        "| this | at least 1 | 2 | met |",
        "| that | at most 1 | 2 | **missed** |",
    ):
        assert line in lines


def test_every_row_of_a_table_has_its_columns() -> None:
    table: list[str] = []
    for line in [*section(full()).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            assert len({row.count("|") for row in table}) == 1
            table = []


def test_what_was_not_measured_has_no_table() -> None:
    text = section(Report(Results()))
    for title in ("### At a steady load", "### JPEG", "### The escalation hop", "### Aims", "Not measured"):
        assert title not in text


def test_stages_add_up() -> None:
    told = stages({"preprocess": 0.2, "edge": 0.3, "total": 0.6}, 900.0, 0.05)
    assert told["all"] == 0.9
    assert sum(told.values()) - told["all"] == told["all"]
    assert told["decode (measured by itself)"] == 0.05
    apart = stages({"decode": 0.1, "preprocess": 0.2, "edge": 0.3}, 900.0, 0.05)
    assert apart["decode"] == 0.1
    assert apart["preprocess"] == 0.2
