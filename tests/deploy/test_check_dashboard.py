import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.check_dashboard import Query, count_series, main, panels, queries, substitute

HAS_DATA = "sum(rate(there_total[1m]))"


def dashboard(*exprs: str) -> dict[str, Any]:
    targets = [{"refId": chr(65 + n), "expr": expr} for n, expr in enumerate(exprs)]
    row = {"type": "row", "title": "collapsed", "panels": [{"title": "inner", "targets": targets[1:]}]}
    return {
        "panels": [{"title": "outer", "targets": targets[:1]}, row],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {"name": "model", "type": "query", "query": {"query": "label_values(there_total, model)"}},
            ]
        },
    }


class _Prometheus(BaseHTTPRequestHandler):
    """As much of the query API as the check uses: it knows `there_total` and nothing else."""

    def do_GET(self) -> None:
        expr = parse_qs(urlsplit(self.path).query)["query"][0]
        series = [{"values": [[0, "NaN"], [15, "0"]]}] if "there_total" in expr else []
        answer: dict[str, Any] = {"status": "success", "data": {"result": series}}
        if "(" not in expr and "{" in expr:
            answer = {"status": "error", "error": "parse error"}
        self.send_response(200 if answer["status"] == "success" else 400)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Prometheus) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def run(tmp_path: Path, url: str, *exprs: str, options: Sequence[str] = ()) -> int:
    file = tmp_path / "dashboard.json"
    file.write_text(json.dumps(dashboard(*exprs)))
    return main([str(file), "--prometheus", url, *options])


def test_every_query_is_found_with_its_variables_filled_in() -> None:
    found = queries(dashboard('a{m=~"$model"}', "rate(b[$__rate_interval])"))

    assert found == [
        Query("outer", "A", 'a{m=~".*"}'),
        Query("inner", "B", "rate(b[1m])"),
        Query("variable model", "-", "there_total"),
    ]


def test_panels_and_rows_can_be_left_out() -> None:
    found = dashboard("a", "b")
    found["panels"] += [{"type": "row", "title": "open"}, {"title": "last", "targets": []}]

    def left(*skip: str) -> list[str]:
        return [panel["title"] for panel in panels(found, skip)]

    assert left() == ["outer", "collapsed", "inner", "open", "last"]
    assert left("collapsed") == ["outer", "open", "last"]
    assert left("inner", "open") == ["outer", "collapsed"]
    assert [query.expr for query in queries(found, ["outer", "inner"])] == ["there_total"]


def test_the_forms_of_a_variable() -> None:
    values = {"model": "x", "__interval": "15s"}
    assert substitute('$model ${model} ${model:regex} "$model(a)" $__interval', values) == 'x x x "x(a)" 15s'
    with pytest.raises(ValueError, match=r"\$site is not defined"):
        substitute('up{site="$site"}', values)


def test_nan_is_no_data() -> None:
    nothing = {"values": [[0, "NaN"], [15, "+Inf"]]}
    something = {"values": [[0, "NaN"], [15, "0"]]}
    assert count_series({"data": {"result": [nothing, something]}}) == 1
    assert count_series({"data": {"result": []}}) == 0


def test_all_is_well(tmp_path: Path, prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, prometheus, HAS_DATA) == 0
    assert "2 of 2 queries return data" in capsys.readouterr().out


def test_a_panel_without_data_is_named(
    tmp_path: Path, prometheus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, prometheus, HAS_DATA, "sum(absent_total)") == 1
    assert capsys.readouterr().err == "no data: inner [B]: sum(absent_total)\n"


def test_what_is_left_out_is_not_asked(
    tmp_path: Path, prometheus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ["--skip", "collapsed"]
    assert run(tmp_path, prometheus, HAS_DATA, "sum(absent_total)", options=skip) == 0
    assert "2 of 2 queries return data" in capsys.readouterr().out


def test_several_dashboards_are_one_check(
    tmp_path: Path, prometheus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(dashboard("sum(absent_total)")))
    assert main([str(other), str(other), "--prometheus", prometheus]) == 1
    captured = capsys.readouterr()
    assert captured.err == 2 * "no data: outer [A]: sum(absent_total)\n"
    assert "2 of 4 queries return data" in captured.out


def test_a_query_that_is_refused_is_named(
    tmp_path: Path, prometheus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, prometheus, HAS_DATA, "sum{") == 1
    captured = capsys.readouterr()
    assert "refused: parse error  inner [B]" in captured.out
    assert "inner [B]" in captured.err


def test_no_prometheus_is_not_the_dashboards_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "http://127.0.0.1:1", HAS_DATA) == 2
    assert run(tmp_path, "127.0.0.1:1", HAS_DATA) == 2
    assert "not an http or https URL" in capsys.readouterr().err
