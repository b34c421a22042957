"""The `tandem` command: `python -m toolchain`, or `tandem`."""

import asyncio
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inference_core.bundle import Bundle, load_bundle
from inference_core.errors import BundleError, InvalidInput, TandemError
from toolchain import demo as demonstration
from toolchain import evaluate as evaluation
from toolchain import scans as digits
from toolchain.bundle_commands import FAILED, TERMINATED, bundle_samples
from toolchain.bundle_commands import app as bundle_app
from toolchain.device import Access, EdgeFailed
from toolchain.images import LabelledImage, read_images
from toolchain.keygen import app as keygen_app
from toolchain.outage import Timing
from toolchain.playback import Playback, play_back, summary
from toolchain.processes import ServiceFailed
from toolchain.samples import Wanted, samples_of
from toolchain.ticker import Ticker
from toolchain.tune_command import app as tune_app

WRONG_INPUT = 2  # the exit status that argument parsers have for it

app = typer.Typer(
    help="Tandem: edge and cloud answer together. Tools to make bundles of your own model, to measure them, "
    "and to play devices.",
    epilog="Exit status: 0 done, 1 something failed or went unanswered, 2 wrong arguments, images or bundle.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(bundle_app)
app.add_typer(tune_app)
app.add_typer(keygen_app)

Data = Annotated[
    Path | None,
    typer.Option(
        help="labelled images: a folder of LABEL/IMAGE or a zip of one; PNG, JPEG or WebP. Without it "
        "the 445 test scans of the digits, for a bundle with the labels 0 to 9",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="images used at most, spread evenly over all")]


@app.command()
def demo(
    bundle: Annotated[Path, typer.Option(help="folder of the bundle that edge and cloud serve")] = Path(
        "models/digits"
    ),
    data: Data = None,
    limit: Limit = 500,
    connections: Annotated[
        int, typer.Option(min=1, max=64, help="images sent at the same time while a mode is measured")
    ] = 2,
    away: Annotated[
        float, typer.Option(min=0, max=600, help="seconds the cloud stays dead in the outage")
    ] = 3.0,
) -> None:
    """Start edge and cloud here, measure every mode on images, then kill the cloud and bring it back.

    Both services run as processes on free ports of 127.0.0.1 until the demo ends. Takes about 20 seconds
    with the digits. The exit status is 0 only if every request was answered with 200 and the edge reached
    the cloud again after its return.
    """
    console = Console()
    served = load_bundle(bundle)
    images = _images(served, data, limit)
    plan = demonstration.Plan(connections, Timing(away_s=away))
    with Ticker(Console(stderr=True)) as ticker:
        results = asyncio.run(demonstration.run_demo(served, images, plan, ticker))
    demonstration.render(results, served, plan, console)
    if not results.complete:
        raise typer.Exit(FAILED)


@app.command()
def device(
    images: Annotated[Path, typer.Argument(help="a folder of images, or a zip of one")],
    url: Annotated[str, typer.Option(help="where the edge node is")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="the model to ask; may be left out where the edge serves one only")
    ] = None,
    rate: Annotated[
        float, typer.Option(help="images per second, whether or not earlier ones are answered")
    ] = 10.0,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="images sent in all; default is every image once", show_default=False),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="go on, round and round, until Ctrl-C")] = False,
    mode: Annotated[
        str | None,
        typer.Option(help="edge, cloud, cascade, split or auto; default is the edge's", show_default=False),
    ] = None,
    cut: Annotated[
        str | None, typer.Option(help="where mode split cuts; default is the edge's", show_default=False)
    ] = None,
    deadline_ms: Annotated[
        int | None,
        typer.Option(min=1, help="milliseconds to an answer; default is the edge's", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="confidence from which the edge is trusted; default is the bundle's",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str,
        typer.Option(help="API key, where the edge asks for one", envvar="TANDEM_KEY", show_default=False),
    ] = "",
    ca: Annotated[
        Path | None,
        typer.Option(
            help="PEM file of the authority of the edge's certificate, for HTTPS", show_default=False
        ),
    ] = None,
) -> None:
    """Play a folder of images against a running edge node, as a device would.

    Prints a line per second and a summary. Latencies are milliseconds from when an image was due, by the
    rate, to its answer. Accuracy is of the images whose folder is named as one of the model's labels. The
    exit status is 1 if any image went unanswered or was refused.
    """
    if loop and count is not None:
        raise InvalidInput("--loop: goes on until Ctrl-C, so it takes no --count")
    console = Console()
    query = {"mode": mode, "cut": cut, "deadline_ms": deadline_ms, "threshold": threshold}
    shown = read_images(images)
    playback = Playback(
        url,
        model,
        rate,
        None if loop else count or len(shown),
        {name: str(value) for name, value in query.items() if value is not None},
        Access(key, ca),
    )
    tally = asyncio.run(play_back(playback, shown, console))
    for line in summary(tally):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if tally.answered < tally.sent:
        raise typer.Exit(FAILED)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="folder of the bundle")],
    data: Data = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="samples used at most, drawn from all", show_default=False),
    ] = None,
) -> None:
    """Measure a bundle: accuracy, milliseconds, bytes, escalated share, every cut.

    No service is started: the bundle's files run here, on one thread. Data may also be images without
    labels or an .npz, as for prepare.
    """
    served = load_bundle(bundle)
    if data is None:
        wanted = Wanted(served.manifest.input, len(served.manifest.labels), served.manifest.preprocess)
        samples = samples_of(_images(served, None, limit), wanted, served.manifest.labels)
    else:
        samples = bundle_samples(served.manifest, data, limit=limit)
    Console().print(evaluation.render(evaluation.evaluate_bundle(served, samples)))


@app.command()
def scans(
    out: Annotated[Path, typer.Option(help="folder to write DIGIT/NUMBER.png into; made when missing")],
    part: Annotated[
        digits.Part, typer.Option(help="the part of the data set: what it is used for")
    ] = digits.Part.TEST,
) -> None:
    """Write handwritten digits (8 x 8 gray PNGs) to play with, as a folder per digit."""
    written = digits.write_scans(out, part)
    Console().print(f"{written} scans in {out}", highlight=False, soft_wrap=True, markup=False)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if show_version:
        typer.echo(version("tandem-inference"))
        raise typer.Exit


def _images(bundle: Bundle, data: Path | None, limit: int | None) -> list[LabelledImage]:
    """The images in `data`, all with labels of the bundle, or else the digits' test scans."""
    labels = bundle.manifest.labels
    if data is not None:
        return read_images(data, limit=limit, labels=labels)
    if labels != digits.LABELS:
        raise InvalidInput(
            f"--data: needed for {bundle.manifest.model}; a folder of LABEL/IMAGE, or a zip of one"
        )
    images = digits.read_scans(digits.Part.TEST)
    count = min(limit or len(images), len(images))
    return [images[at * len(images) // count] for at in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in `arguments`, by default those of this process; ends with `SystemExit`."""
    try:
        app(arguments, prog_name="tandem")
    except (TandemError, ServiceFailed, EdgeFailed, OSError) as error:
        typer.echo(f"tandem: {error}", err=True)
        sys.exit(WRONG_INPUT if isinstance(error, InvalidInput | BundleError) else FAILED)
    except asyncio.CancelledError:
        sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
