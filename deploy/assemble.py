"""Put together the folder that one service's image holds: `assemble.py edge|cloud TARGET`.

Its code, the metadata that names its version, the licence, the health check, and of each bundle only the
files that this service reads. A manifest goes along unchanged, so that a bundle keeps its digest, and
every file is checked against it: an image with a broken bundle is not built.
"""

import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from inference_core.bundle import MANIFEST, File, Manifest, load_bundle

Role = Literal["edge", "cloud"]
ROOT = Path(__file__).parents[1]
PACKAGES: dict[Role, tuple[str, ...]] = {
    "edge": ("protos", "inference_core", "edge_node"),
    "cloud": ("protos", "inference_core", "cloud_service"),
}


def assemble(role: Role, source: Path, target: Path) -> dict[str, int]:
    """Fill `target`, which must not exist, from the checkout `source`; the bytes of each bundle copied.

    Raises `BundleError` for a bundle that is broken.
    """
    target.mkdir(parents=True)
    for package in PACKAGES[role]:
        shutil.copytree(source / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "LICENSE", target)
    shutil.copy(source / "deploy" / "probe.py", target)
    write_metadata(source / "pyproject.toml", target)
    return copy_bundles(role, source / "models", target / "models")


def write_metadata(pyproject: Path, target: Path) -> None:
    """What `importlib.metadata` finds the name and the version in, where nothing was installed by pip."""
    project = tomllib.loads(pyproject.read_text())["project"]
    folder = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}"]
    (folder / "METADATA").write_text("\n".join([*lines, f"License-Expression: {project['license']}", ""]))


def copy_bundles(role: Role, source: Path, target: Path) -> dict[str, int]:
    """Copy what `role` reads of every bundle in `source`; the bytes copied, by folder name."""
    copied = {}
    for path in sorted(source.glob(f"*/{MANIFEST}")):
        bundle = load_bundle(path.parent)
        contents = {file.file: bundle.read(file) for file in files_read_by(role, bundle.manifest)}
        contents[MANIFEST] = path.read_bytes()
        folder = target / path.parent.name
        folder.mkdir(parents=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        copied[folder.name] = sum(map(len, contents.values()))
    return copied


def files_read_by(role: Role, manifest: Manifest) -> list[File]:
    """The files of a bundle that the service called `role` opens, besides the manifest."""
    if role == "edge":
        return [manifest.edge_variant, *manifest.heads.values(), manifest.golden]
    return [manifest.full, *(cut.tail for cut in manifest.cuts), manifest.golden]


def main(arguments: Sequence[str]) -> int:
    """Assemble, and print the size of each bundle; 1 when there is none to serve."""
    roles: dict[str, Role] = {"edge": "edge", "cloud": "cloud"}
    if len(arguments) != 2 or arguments[0] not in roles:
        sys.stderr.write("usage: assemble.py edge|cloud TARGET\n")
        return 2
    copied = assemble(roles[arguments[0]], ROOT, Path(arguments[1]))
    for name, size in copied.items():
        sys.stdout.write(f"{arguments[0]}: models/{name}, {size} bytes\n")
    if not copied:
        sys.stderr.write("no bundle in models/\n")
    return 0 if copied else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
