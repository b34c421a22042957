"""A sensor with large raw windows: made-up vibrations of a machine, and networks that tell its states apart.

One window is FP32 `[1, 65536]`, 256 kB: two seconds at 32 kHz. Each state has tones of its own under noise
that is louder in some windows than in others, so that a small network is sure of many and unsure of some.
Everything is seeded.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.networks import Classes, Graph, teach
from inference_core.bundle import Bundle
from toolchain.graph import check
from toolchain.prepare import prepare
from toolchain.recipe import Exits, Recipe, Targets
from toolchain.samples import Samples

LENGTH = 1 << 16
STATES = ("idle", "steady", "fast", "worn", "loose", "dry")
GAP = 0.02  # of the certificate
_TONES = 3
_TAUGHT, _PREPARED = 400, 600


def windows(count: int, seed: int) -> tuple[NDArray[np.float32], Classes]:
    """Windows, float32 `[count, 1, LENGTH]`, and the states that they show, int64 `[count]`."""
    rng, tones = np.random.default_rng(seed), np.random.default_rng(0)
    frequencies = np.sort(tones.uniform(0.02, 0.3, (len(STATES), _TONES)), axis=1)
    states = rng.integers(0, len(STATES), count)
    time = np.arange(LENGTH, dtype=np.float32)
    made = np.empty((count, 1, LENGTH), np.float32)
    for window, state in zip(made, states, strict=True):
        window[0] = rng.standard_normal(LENGTH, np.float32) * np.float32(rng.uniform(0.1, 1.6))
        for frequency in frequencies[state] * rng.normal(1, 0.01):
            phase, loud = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0)
            turn = np.float32(2 * np.pi * frequency) * time + np.float32(phase)
            window[0] += np.float32(loud) * np.sin(turn)
    return made, states


def full_network() -> bytes:
    """The network of the cloud: `[batch, 1, LENGTH]` to `STATES`."""
    graph = Graph(1, LENGTH, seed=1)
    x = graph.relu(graph.norm(graph.conv(graph.input, 48, 63, stride=8)))
    x = graph.relu(graph.norm(graph.conv(x, 64, 9, stride=4)))
    x = graph.relu(graph.norm(graph.conv(graph.pool(x, 4, 4), 16, 1)))  # narrow: a place to cut
    for _ in range(3):
        x = graph.relu(graph.norm(graph.conv(x, 160, 9)))
    return graph.classify(x, len(STATES))


def edge_network() -> bytes:
    """The small network of the edge, of the same form."""
    graph = Graph(1, LENGTH, seed=2)
    x = graph.relu(graph.norm(graph.conv(graph.input, 16, 31, stride=16)))
    x = graph.relu(graph.norm(graph.conv(x, 24, 9, stride=8)))
    return graph.classify(x, len(STATES))


def build(folder: Path) -> Bundle:
    """Teach both networks and make the bundle `folder` of them."""
    samples, states = windows(_TAUGHT, seed=10)
    full = teach(full_network(), samples, states)
    edge = teach(edge_network(), samples, states)
    made, seen = windows(_PREPARED, seed=11)
    recipe = Recipe(
        model="vibration",
        version="1",
        full=check(full, "full.onnx"),
        edge=check(edge, "edge.onnx"),
        samples=Samples(made, seen, None),
        labels=STATES,
        targets=Targets(gap=GAP),
        exits=Exits.NEVER,
    )
    return prepare(recipe, folder).bundle
