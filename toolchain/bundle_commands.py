"""The commands that make and check bundles: `tandem prepare`, `inspect`, `verify`."""

import logging
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inference_core.bundle import load_bundle
from inference_core.errors import InvalidInput
from inference_core.manifest import Manifest
from inference_core.preprocess import Color, Fit, Layout, Preprocess, Resample
from toolchain import inspection, verification
from toolchain.arguments import model_name, parse_cuts, parse_shape, read_labels
from toolchain.graph import Graph, align, check, read_model
from toolchain.package import PAGE, check_free
from toolchain.recipe import Exits, Recipe, Targets, check_names
from toolchain.rules import parse_numbers, parse_size, preprocess_from_options, read_preprocess
from toolchain.samples import Samples, Wanted, read_samples

FAILED = 1
TERMINATED = 143

app = typer.Typer()
_log = logging.getLogger(__name__)

BundleFolder = Annotated[Path, typer.Argument(help="folder of the bundle")]
Bad = Annotated[
    int,
    typer.Option(min=0, help="images that may be unusable; they are named and left out", show_default=True),
]


@app.command()
def prepare(
    full: Annotated[
        Path, typer.Argument(help="the full model: an ONNX file with one input and a batch axis")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="typical inputs: a folder of LABEL/IMAGE, a zip of one, a flat folder of images, or an .npz "
            "with x and, if known, y. Without labels all is measured against the full model's answers"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder to write the bundle into")],
    edge: Annotated[
        Path | None,
        typer.Option(
            help="a smaller model for the edge, with the same input and output; without it the edge gets the "
            "full one quantized, or an early exit of it",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="further data, only to measure on; default is a fifth of --data", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="the model's name; default is that of the folder", show_default=False)
    ] = None,
    version: Annotated[str, typer.Option(help="the model's version")] = "1",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="a text file with the name of each output, one a line, in order; default is the folders of "
            "--data, sorted",
            show_default=False,
        ),
    ] = None,
    gap: Annotated[
        float, typer.Option(help="at most this share of inputs is answered wrongly by trusting the edge")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="with which the certificate holds")] = 0.95,
    escalation_budget: Annotated[
        float | None,
        typer.Option(
            help="certify the share escalated, at most this, instead of the gap", show_default=False
        ),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(min=0, max=1, help="a smaller form that loses more of accuracy is refused")
    ] = 0.01,
    max_change: Annotated[
        float, typer.Option(min=0, max=1, help="a cut that changes more of the answers is left out")
    ] = 0.01,
    exits: Annotated[
        Exits, typer.Option("--exit", help="let the edge answer from the middle of the full model")
    ] = Exits.AUTO,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=TENSOR[+TENSOR]: cut here instead of where it seems best; may be repeated",
            show_default=False,
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="store the cloud's weights in 16 bits")] = False,
    preprocess: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON: from an image to the input; see docs/toolchain.md", show_default=False
        ),
    ] = None,
    resize: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT: scale images to the model's size", show_default=False)
    ] = None,
    fit: Annotated[Fit | None, typer.Option(help="how to scale", show_default=False)] = None,
    resample: Annotated[Resample | None, typer.Option(help="filter of --resize", show_default=False)] = None,
    color: Annotated[Color | None, typer.Option(help="what the model sees", show_default=False)] = None,
    layout: Annotated[Layout | None, typer.Option(help="order of the axes", show_default=False)] = None,
    scale: Annotated[
        float | None, typer.Option(help="of a pixel of 0 to 255; default 1/255", show_default=False)
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="taken off each channel: 0.485,0.456,0.406", show_default=False)
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="each channel is divided by: 0.229,0.224,0.225", show_default=False)
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="for open axes behind the batch: 3x224x224", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=10, help="take so many of --data, drawn by --seed", show_default=False)
    ] = None,
    max_bad: Bad = 0,
    seed: Annotated[int, typer.Option(min=0, help="of every draw: the same seed, the same bundle")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="replace --out if it exists")] = False,
) -> None:
    """Make a certified bundle for both ends from one full ONNX model and some data.

    Checks and simplifies the model, quantizes it, finds where to cut it, grows early exits, calibrates the
    edge's confidence, certifies a threshold, measures everything on data that chose nothing, and writes the
    folder --out at once, or nothing.
    """
    # What is quickly checked comes first: a wrong name must not cost minutes.
    model = model_name(name, out)
    targets = Targets(gap, confidence, escalation_budget, max_loss, max_change)
    cuts = parse_cuts(cut or ())
    check_names(model, version, cuts)
    check_free(out, replace=replace)
    options = {"fit": fit, "resample": resample, "color": color, "layout": layout, "scale": scale}
    given = {
        **{key: value for key, value in options.items() if value is not None},
        **({} if mean is None else {"mean": parse_numbers(mean, "--mean")}),
        **({} if std is None else {"std": parse_numbers(std, "--std")}),
        **({} if resize is None else {"resize": parse_size(resize, "--resize")}),
    }
    names = None if labels is None else read_labels(labels)
    shape = None if input_shape is None else parse_shape(input_shape)
    for path in (full, *(path for path in (data, test, edge) if path is not None)):
        if not path.exists():
            raise InvalidInput(f"{path}: no such file or folder")

    from toolchain.prepare import prepare as make  # which loads much

    # As Ctrl-C does, this unwinds, so that what is half made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    graph = check(read_model(full), str(full), shape)
    small = None if edge is None else align(check(read_model(edge), str(edge), shape), graph)
    wanted = _wanted(graph, data, preprocess, given)
    samples, known = read_samples(data, wanted, names, max_bad=max_bad, limit=limit, seed=seed)
    tested = None if test is None else read_samples(test, wanted, known, max_bad=max_bad)[0]
    recipe = Recipe(
        model=model,
        version=version,
        full=graph,
        samples=samples,
        labels=known,
        edge=small,
        preprocess=wanted.preprocess,
        test=tested,
        targets=targets,
        cuts=cuts or None,
        exits=exits,
        half=half,
        seed=seed,
    )
    try:
        prepared = make(recipe, out, replace_folder=replace, say=_say)
    except KeyboardInterrupt:
        typer.echo("tandem: interrupted, nothing was written", err=True)
        raise
    console = Console()
    console.print(inspection.describe(prepared.bundle))
    console.print()
    for line in _next_steps(out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def inspect(bundle: BundleFolder) -> None:
    """Show a bundle on one screen: models, cuts, calibration, certificate."""
    Console().print(inspection.describe(load_bundle(bundle)))


@app.command()
def verify(
    bundle: BundleFolder,
    data: Annotated[
        Path | None,
        typer.Option(help="data to hold the certificate against, as for prepare", show_default=False),
    ] = None,
    max_bad: Bad = 0,
) -> None:
    """Check every digest and golden output of a bundle and, on data, whether its certificate still holds.

    The exit status is 1 if any check failed.
    """
    loaded = load_bundle(bundle)
    samples = None if data is None else bundle_samples(loaded.manifest, data, max_bad=max_bad)
    checks = verification.verify(loaded, samples)
    Console().print(verification.render(checks))
    if not all(one.passed for one in checks):
        raise typer.Exit(FAILED)


def bundle_samples(manifest: Manifest, data: Path, *, max_bad: int = 0, limit: int | None = None) -> Samples:
    """`data` as the model of `manifest` takes it."""
    wanted = Wanted(manifest.input, len(manifest.labels), manifest.preprocess)
    return read_samples(data, wanted, manifest.labels, max_bad=max_bad, limit=limit)[0]


def _wanted(graph: Graph, data: Path, file: Path | None, given: Mapping[str, object]) -> Wanted:
    """What the model takes, and how it is made of an image, if it takes any."""
    (classes,) = graph.output.shape
    if file is not None:
        if given:
            raise InvalidInput(f"--preprocess {file} says it all; leave out --{', --'.join(given)}")
        return Wanted(graph.input, classes, read_preprocess(file))
    rules: Preprocess | None = None
    resized = False
    if given or data.suffix.lower() != ".npz":
        rules, resized = preprocess_from_options(graph.input, **given)  # type: ignore[arg-type]
        if rules is not None and not given.keys() & {"scale", "mean", "std"}:
            _log.warning(
                "nothing says how pixels become the input: 0 to 255 is taken to be 0 to 1; if the model was "
                "trained on something else, give --mean and --std, --scale, or --preprocess"
            )
    return Wanted(graph.input, classes, rules, resized)


def _say(line: str) -> None:
    """A stage, for who is looking on."""
    stages = Console(stderr=True)
    if stages.is_terminal:
        stages.print(line, markup=False, highlight=False, soft_wrap=True)
    _log.info(line)


def _next_steps(out: Path) -> tuple[str, str]:
    folder = shlex.quote(str(out))
    return (
        f"report    {out / PAGE}",
        f"serve it  CLOUD_BUNDLES={folder} tandem-cloud    and    EDGE_BUNDLES={folder} tandem-edge",
    )
