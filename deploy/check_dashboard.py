"""Ask a running Prometheus every query of the Grafana dashboards; fail, naming the panels that get no data.

    python deploy/check_dashboard.py --prometheus http://127.0.0.1:9090 --minutes 15

Where there are neither keys nor certificates, nothing tells of them: `--skip Strangers --skip Certificates`.
Standard library only, so that it runs wherever Python does.
"""

import argparse
import http.client
import json
import math
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

DASHBOARDS = tuple(sorted((Path(__file__).parent / "grafana" / "dashboards").glob("*.json")))
STEP_S = 15
# What Grafana itself fills in. The rate interval is four scrapes or more, as Grafana would choose.
BUILT_IN = {"__rate_interval": "1m", "__interval": f"{STEP_S}s", "__range": "15m"}
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<plain>\w+))")


@dataclass(frozen=True)
class Query:
    """One query, and the panel or variable that a person would look for."""

    panel: str
    ref: str
    expr: str


def panels(dashboard: dict[str, Any], skip: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Every panel, those inside collapsed rows too; none of the titles to `skip`, and none of such a row."""
    in_row = True
    for panel in dashboard["panels"]:
        if panel.get("type") == "row":
            in_row = panel["title"] not in skip
        if in_row:
            yield from (each for each in (panel, *panel.get("panels", ())) if each["title"] not in skip)


def queries(dashboard: dict[str, Any], skip: Collection[str] = ()) -> list[Query]:
    """Every query of the panels, without those to `skip`, and of the variables, which are filled in as "All".

    Raises `ValueError` for a variable that the dashboard does not define.
    """
    values = {**BUILT_IN, **{v["name"]: ".*" for v in dashboard["templating"]["list"]}}
    found = [
        Query(panel["title"], target["refId"], substitute(target["expr"], values))
        for panel in panels(dashboard, skip)
        for target in panel.get("targets", ())
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            label_values = re.fullmatch(r"label_values\((.+), *\w+\)", _text(variable["query"]))
            if label_values is None:
                raise ValueError(f"variable {variable['name']}: not label_values(metric, label)")
            found.append(Query(f"variable {variable['name']}", "-", substitute(label_values[1], values)))
    return found


def _text(query: str | dict[str, str]) -> str:
    return query if isinstance(query, str) else query["query"]


def substitute(expr: str, values: dict[str, str]) -> str:
    """`expr` with `$name`, `${name}` and `${name:format}` replaced; `ValueError` for an unknown name."""

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        if name not in values:
            raise ValueError(f"variable ${name} is not defined, in: {expr}")
        return values[name]

    return _VARIABLE.sub(value, expr)


def count_series(answer: dict[str, Any]) -> int:
    """How many series of a `query_range` answer hold a number: NaN, 0/0 for a rate, is not one."""
    return sum(
        any(math.isfinite(float(value)) for _, value in series["values"])
        for series in answer["data"]["result"]
    )


class Prometheus:
    """The HTTP API of one Prometheus."""

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{url}: not an http or https URL")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.netloc, timeout=timeout_s)
        self._prefix = parts.path.rstrip("/")

    def series(self, expr: str, *, start: float, end: float) -> int:
        """How many series `expr` had between two Unix times; `ValueError` when Prometheus refuses it.

        Raises `OSError` when there is no Prometheus.
        """
        parameters = urlencode({"query": expr, "start": start, "end": end, "step": STEP_S})
        self._connection.request("GET", f"{self._prefix}/api/v1/query_range?{parameters}")
        answer = json.loads(self._connection.getresponse().read())
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return count_series(answer)


def check(prometheus: Prometheus, wanted: Sequence[Query], minutes: float) -> list[Query]:
    """Ask each query over the last `minutes`, print what came, and return those without data."""
    end = time.time()
    empty = []
    for query in wanted:
        try:
            count = prometheus.series(query.expr, start=end - 60 * minutes, end=end)
            result = f"{count:4d} series"
        except ValueError as error:
            count, result = 0, f"refused: {error}"
        sys.stdout.write(f"{'ok     ' if count else 'NO DATA'} {result}  {query.panel} [{query.ref}]\n")
        if not count:
            empty.append(query)
    return empty


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every query returns data, 1 when one does not, 2 when Prometheus cannot be asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dashboards", nargs="*", type=Path, default=DASHBOARDS, metavar="dashboard")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=15, help="how far back to look (15)")
    parser.add_argument("--skip", action="append", default=[], metavar="TITLE", help="a panel or a row")
    options = parser.parse_args(arguments)
    try:
        wanted = [
            query
            for path in options.dashboards
            for query in queries(json.loads(path.read_text()), options.skip)
        ]
        empty = check(Prometheus(options.prometheus), wanted, options.minutes)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{len(wanted) - len(empty)} of {len(wanted)} queries return data\n")
    for query in empty:
        sys.stderr.write(f"no data: {query.panel} [{query.ref}]: {query.expr}\n")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
