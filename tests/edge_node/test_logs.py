"""What a service writes to standard error, seen from outside its process."""

import json
import subprocess
import sys

SCRIPT = """
import logging
from edge_node.logs import configure_logging
configure_logging({level!r}, {form!r})
log = logging.getLogger("edge_node.somewhere")
log.debug("too quiet")
log.info("ready: %s", "a\\nb")
log.error("ünusual")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
logging.getLogger("uvicorn").info("chatter")
"""


def written(level: str, form: str) -> list[str]:
    script = SCRIPT.format(level=level, form=form)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_per_record() -> None:
    records = [json.loads(line) for line in written("INFO", "json")]
    assert [record["message"] for record in records] == ["ready: a\nb", "ünusual", "failed"]
    assert [record["level"] for record in records] == ["INFO", "ERROR", "ERROR"]
    assert {record["logger"] for record in records} == {"edge_node.somewhere"}
    assert all(record["time"] > 1.7e9 for record in records)
    assert "trace" not in records[0]
    assert records[2]["trace"].startswith("Traceback")
    assert records[2]["trace"].endswith("ValueError: broken")


def test_text_names_level_and_logger() -> None:
    lines = written("INFO", "text")
    assert lines[0].endswith("INFO    edge_node.somewhere: ready: a")
    assert any(line.endswith("ERROR   edge_node.somewhere: failed") for line in lines)
    assert lines[-1] == "ValueError: broken"


def test_level_is_the_least_that_is_written() -> None:
    assert [json.loads(line)["message"] for line in written("ERROR", "json")] == ["ünusual", "failed"]
    assert json.loads(written("DEBUG", "json")[0])["message"] == "too quiet"


def test_servers_own_start_and_end_are_left_out() -> None:
    assert not any("chatter" in line for line in written("DEBUG", "text"))
