"""The command `tandem tune`: measures, prints the tables, writes the choice where the services read it."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inference_core.bundle import Bundle, load_bundle
from inference_core.errors import InvalidInput
from inference_core.manifest import File
from toolchain import machine, settings_file
from toolchain.bundle_commands import BundleFolder
from toolchain.knee import CLOUD, EDGE, MAX_THREADS, SERVINGS, Cell, Grid, check_grid, chosen_settings
from toolchain.tune import measure, render

app = typer.Typer()


@app.command()
def tune(
    bundle: BundleFolder,
    out: Annotated[
        Path, typer.Option(help="folder of edge.toml and cloud.toml; made when missing", show_default=True)
    ] = Path(),
    max_batch: Annotated[int, typer.Option(help="samples in one run, at most; 1 to 256")] = 16,
    seconds: Annotated[float, typer.Option(help="for each number of threads with each batch, about")] = 0.5,
) -> None:
    """Find the threads and the batch that suit this machine, and write them for both services.

    Measures the edge model as the edge runs it and the full one as the cloud does, and takes, of what reaches
    90 % of the best throughput, the shortest run. Run it where the service runs, while nothing else does. A
    settings file that is there keeps all else that it says.
    """
    check_grid(max_batch, seconds)
    loaded = load_bundle(bundle)
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"--out {out}: is no folder")
    cores = min(machine.cores(), MAX_THREADS)
    paths = {service: out / f"{service}.toml" for service in SERVINGS}
    for service, path in paths.items():  # what cannot be written must not cost a minute
        _text(path, chosen_settings(Cell(1, 1, 1, 1.0), service, cores), loaded)
    console = Console()
    try:
        chosen = _choose(loaded, Grid(cores, max_batch, seconds), console)
    except KeyboardInterrupt:
        typer.echo("tandem: interrupted, nothing was written", err=True)
        raise
    texts = {service: _text(path, chosen[service], loaded) for service, path in paths.items()}
    out.mkdir(parents=True, exist_ok=True)
    for service, path in paths.items():
        settings_file.write(path, texts[service])
        said = ", ".join(f"{key} = {value}" for key, value in chosen[service].items())
        _say(console, f"{path}: {said}")
    size = chosen[CLOUD]["max_batch_size"]
    _say(
        console,
        f"max_batch_size is also the most samples of one request to the cloud: raise it where clients send "
        f"more than {size}",
    )
    starts = (_start(service, paths[service], texts[service], bundle) for service in (CLOUD, EDGE))
    _say(console, f"serve it  {'    and    '.join(starts)}")


def _choose(bundle: Bundle, grid: Grid, console: Console) -> dict[str, dict[str, int]]:
    """The settings of each service; each table is shown as soon as it is known."""
    files: dict[str, File] = {EDGE: bundle.manifest.edge_variant, CLOUD: bundle.manifest.full}
    chosen = {}
    for service, file in files.items():
        measured = measure(bundle, file, SERVINGS[service], grid)
        chosen[service] = chosen_settings(measured.choice, service, grid.cores)
        console.print(render(measured))
        console.print()
    return chosen


def _text(path: Path, values: Mapping[str, int], bundle: Bundle) -> str:
    """What the file `path` is to hold."""
    manifest, cores = bundle.manifest, machine.cores()
    note = (
        f"{datetime.now(UTC).date()}, {manifest.model} version {manifest.version}, digest {bundle.digest}, "
        f"{cores} core{'' if cores == 1 else 's'} of {machine.processor()}"
    )
    text = settings_file.read(path)
    try:
        return settings_file.merged(text, values, note)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error


def _start(service: str, path: Path, text: str, bundle: Path) -> str:
    """How to start a service with its file, and with the bundle if the file names none."""
    command = f"tandem-{service} --config {shlex.quote(str(path))}"
    if "bundles" in settings_file.names(text):
        return command
    return f"{service.upper()}_BUNDLES={shlex.quote(str(bundle))} {command}"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
