"""Tuning: what is run and what is left out, and the table of it."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

from cloud_service.models import PROVIDERS as CLOUD_PROVIDERS
from edge_node.model_slot import PROVIDERS as EDGE_PROVIDERS
from inference_core.bundle import load_bundle
from inference_core.errors import InvalidInput
from tests.bundles import GOLDEN, constant, model_bytes, npz_bytes, pool_and_classify, replace_file
from toolchain.knee import CLOUD, EDGE, SERVINGS, Cell, Grid, Serving, chosen_settings
from toolchain.tune import ROUNDS, LeftOut, Measured, measure, render

POOLED = Serving(EDGE, EDGE_PROVIDERS, 0.0)  # as if no run were short
QUICK = Grid(cores=2, max_batch=4, seconds=0.02)
SERVED = "edge-int8.onnx"

Make = Callable[..., Path]


def tuned(folder: Path, serving: Serving, grid: Grid = QUICK) -> Measured:
    bundle = load_bundle(folder)
    file = bundle.manifest.full if serving.service == CLOUD else bundle.manifest.edge_variant
    return measure(bundle, file, serving, grid)


def test_every_setting_is_measured_as_the_service_runs_it(make_bundle: Make) -> None:
    # 4 samples of a model this small take far below a millisecond, also on a busy machine.
    measured = tuned(make_bundle(), POOLED, Grid(cores=2, max_batch=4, seconds=1.0))
    lanes = {(cell.threads, cell.batch): cell.at_a_time for cell in measured.cells}
    assert lanes == {(1, 1): 2, (1, 2): 2, (1, 4): 2, (2, 1): 1, (2, 2): 1, (2, 4): 1}
    assert all(0 < cell.run_ms < math.inf for cell in measured.cells)
    assert measured.choice in measured.cells
    assert (measured.file, measured.fixed, measured.left_out) == (SERVED, False, ())
    assert 1 <= measured.rounds <= ROUNDS
    assert measured.unrest >= 1


def test_the_cloud_runs_one_at_a_time(make_bundle: Make) -> None:
    measured = tuned(make_bundle(full_work=2), SERVINGS[CLOUD], Grid(2, 1, 0.05))
    assert [(cell.threads, cell.at_a_time) for cell in measured.cells] == [(1, 1), (2, 1)]
    assert measured.file == "full.onnx"


def test_what_takes_too_long_is_left_out_and_single_samples_never_are(make_bundle: Make) -> None:
    measured = tuned(make_bundle(full_work=200), SERVINGS[CLOUD], Grid(2, 4, 0.01))
    assert [(cell.threads, cell.batch) for cell in measured.cells] == [(1, 1), (2, 1)]
    assert [(one.threads, one.batch) for one in measured.left_out] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert all(one.why.startswith("a run takes about ") for one in measured.left_out)
    assert measured.rounds == 1  # the time of all was over


def _single_golden(folder: Path, name: str, model: onnx.ModelProto | bytes) -> None:
    """Put `model` in the place of the file `name`, and one sample in the place of the golden ones."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with np.load(folder / GOLDEN, allow_pickle=False) as archive:
        rows: dict[str, Any] = {key: archive[key][:1] for key in archive.files}
    replace_file(folder, GOLDEN, npz_bytes(rows))
    replace_file(folder, name, data)


def _fix_batch(folder: Path, name: str, batch: int) -> onnx.ModelProto:
    model = onnx.load_model_from_string((folder / name).read_bytes())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def test_a_fixed_batch_axis_is_measured_with_single_samples(make_bundle: Make) -> None:
    folder = make_bundle()
    _single_golden(folder, SERVED, _fix_batch(folder, SERVED, 1))
    measured = tuned(folder, POOLED)
    assert {cell.batch for cell in measured.cells} == {1}
    assert measured.fixed
    assert chosen_settings(measured.choice, EDGE, 2)["max_batch"] == 1
    assert "only single samples were measured" in shown(measured)


def test_a_batch_axis_that_no_service_can_fill_is_refused(make_bundle: Make) -> None:
    folder = make_bundle()
    replace_file(folder, SERVED, _fix_batch(folder, SERVED, 4).SerializeToString())  # as the golden samples
    with pytest.raises(InvalidInput, match=r"shape must be \[4, 3, 8, 8\], got \[1, 3, 8, 8\]"):
        tuned(folder, POOLED)


def test_batches_that_fail_are_left_out_with_the_reason(make_bundle: Make) -> None:
    folder = make_bundle()
    pool, flatten, _, *weights = pool_and_classify(bias=(0, 0, 0))
    parts = [
        pool,
        flatten,
        helper.make_node("Reshape", ["means", "one_row"], ["row"]),
        helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"]),
        constant("one_row", [1, 3], np.int64),
        *weights,
    ]
    _single_golden(folder, SERVED, model_bytes(parts))
    measured = tuned(folder, POOLED, Grid(1, 2, 1.0))
    assert [cell.batch for cell in measured.cells] == [1]
    (one,) = measured.left_out
    assert (one.threads, one.batch) == (1, 2)
    assert "Reshape" in one.why
    assert "\n" not in one.why


# ---- the table


def shown(measured: Measured) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render(measured))
    return out.getvalue()


def test_the_table_shows_every_setting_and_marks_the_choice() -> None:
    cells = (Cell(1, 2, 1, 2.0), Cell(2, 1, 1, 1.5), Cell(2, 1, 8, 9000.0))
    left_out = (LeftOut(1, 8, "a run takes about 12 s"),)
    text = shown(Measured(EDGE, "small.onnx", EDGE_PROVIDERS, 0.5, 5, 1.4, False, cells, left_out))
    rows = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "edge: small.onnx" in rows[0]
    assert rows[4:8] == [
        "1 2 1 2.000 1,000 chosen",
        "1 8 left out: a run takes about 12 s",
        "2 1 1 1.500 667",
        "2 1 8 9000.000 0.889",
    ]
    assert "medians of 5 rounds; left out is what fails, or does not fit 5 times into --seconds 0.5" in text
    assert "only single samples" not in text
    assert "busy" not in text


def test_the_table_says_where_it_did_not_run_on_the_processor() -> None:
    cells = (Cell(1, 1, 1, 2.0),)
    text = shown(Measured(CLOUD, "full.onnx", CLOUD_PROVIDERS, 0.5, 1, 1.0, False, cells, ()))
    assert "medians of 1 round; on CUDAExecutionProvider" in text


def test_the_table_says_when_the_machine_was_busy() -> None:
    cells = (Cell(1, 1, 1, 2.0),)
    text = shown(Measured(CLOUD, "full.onnx", CLOUD_PROVIDERS, 0.5, 5, 3.25, False, cells, ()))
    assert "one round took 3.2 times as long as another: better tune again while nothing else runs" in text
