"""What the tests of simulated devices share: a real edge node without a cloud, and images for it."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.bundles import SURE, UNSURE, UNSURE_AND_RIGHT, Color, picture, write_bundle
from toolchain.images import LabelledImage
from toolchain.processes import Service

RED = LabelledImage("red/sure.png", "red", picture(SURE))
# To the edge the first of these is red and wrong, to the cloud it is blue and right.
BLUE = LabelledImage("blue/unsure.png", "blue", picture(UNSURE))
BLUE_TOO = LabelledImage("blue/right.png", "blue", picture(UNSURE_AND_RIGHT))
UNLABELLED = LabelledImage("sure.png", None, picture(SURE))
BROKEN = LabelledImage("red/broken.png", "red", b"no image")

NONE: Mapping[str, str] = MappingProxyType({})
_COLORS: dict[str, Color] = {"red/sure": SURE, "blue/unsure": UNSURE, "blue/right": UNSURE_AND_RIGHT}


@contextmanager
def running_edge(folder: Path, settings: Mapping[str, str] = NONE) -> Iterator[str]:
    """The URL of an edge node that serves the model `colors`, without a cloud, from a bundle in `folder`."""
    edge = Service("edge_node", "EDGE", {"BUNDLES": str(write_bundle(folder)), "CLOUD": "", **settings})
    asyncio.run(edge.start())
    try:
        yield edge.url
    finally:
        asyncio.run(edge.stop())


def write_images(folder: Path, each: int) -> Path:
    """`each` of three images as `folder/<label>/<name>.png`; a sure red one and two unsure blue ones."""
    for name, color in _COLORS.items():
        for number in range(each):
            path = folder / f"{name}{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(color))
    return folder
