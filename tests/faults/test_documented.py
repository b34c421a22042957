"""What the edge's documentation allows, and what it does not, as schemathesis makes it of the document."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bundles import write_bundle
from tests.faults.row import Row
from tests.faults.table import Case, Finding
from tests.faults.watched import naive
from tests.joint.services import Services, get_json

_CASES = re.compile(r"(\d+) generated")
_FAILED = re.compile(r"(\d+) found .*unique failures|(\d+) failed")


def test_documented_interface(row: Row, services: Services, tmp_path: Path) -> None:
    edge = services.edge(write_bundle(tmp_path / "colors")).wait_ready()
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(_of_one_model(get_json(edge.ports[0], "/openapi.json"))))
    found = _explored(document, edge.ports[0], row.count(30, 1000), row.seed)
    with naive() as (_, port, _):
        twin = _explored(document, port, 10, row.seed)
    row.judge(Case("schemathesis over the documentation", found, twin, "our checks"))


def _of_one_model(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the model that is there in place of any: else nearly all would be 404."""
    values = {"model": "colors", "version": "1"}
    paths = {}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            left = [p for p in operation.get("parameters", []) if p["in"] != "path"]
            operation["parameters"] = left
        paths[path.format(**values)] = operations
    return document | {"paths": paths}


def _explored(document: Path, port: int, examples: int, seed: int) -> Finding:
    """What it says of so many examples for each operation; an answer of 500 or more is a failure."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", document, "--url", f"http://127.0.0.1:{port}"),
            *("--phases", "coverage,fuzzing", "--checks", "not_a_server_error", "--no-color"),
            *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    cases = _CASES.search(run.stdout)
    assert cases is not None, run.stdout[-2000:] + run.stderr[-2000:]
    failed = 0
    if run.returncode:
        told = _FAILED.search(run.stdout)
        failed = int(next(filter(None, told.groups()))) if told else 1
    return Finding(int(cases[1]), failed, f"{examples} examples for each operation")
