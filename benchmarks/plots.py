"""Plots of the benchmark of joint inference, as SVG."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.phases import Phase, rows

_SIZE = (9.0, 3.6)


def plot_means(phases: list[Phase], path: Path) -> None:
    """Mean latency of every route over every profile, a logarithmic scale."""
    matplotlib.rcParams["svg.hashsalt"] = "joint"  # the same file for the same figures
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    tables = [{row.route: row for row in rows(phase)} for phase in phases]
    names = list(tables[0])
    width = 0.85 / len(names)
    for place, name in enumerate(names):
        means = [1000 * table[name].mean for table in tables]
        color = "black" if name == "auto" else f"C{place % 10}"
        axes.bar(np.arange(len(phases)) + place * width, means, width, label=name, color=color)
    axes.set_yscale("log")
    axes.set_ylabel("mean latency, ms")
    axes.set_xticks(np.arange(len(phases)) + 0.42, [phase.profile.name for phase in phases])
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_trace(phase: Phase, path: Path) -> None:
    """Latency second by second of the routes over one trace; grey where the link is away."""
    matplotlib.rcParams["svg.hashsalt"] = "joint"
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    for place, (name, records) in enumerate(phase.records.items()):
        seconds = np.array([int(record.at) for record in records])
        times = np.array([record.seconds for record in records])
        shown = np.unique(seconds)
        means = [1000 * times[seconds == second].mean() for second in shown]
        auto = name == "auto"
        color, width = ("black", 2.0) if auto else (f"C{place}", 1.0)
        axes.plot(shown, means, label=name, color=color, linewidth=width)
    for second, conditions in enumerate(phase.profile.trace):
        if conditions.out:
            axes.axvspan(second, second + 1, color="0.85")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("mean latency, ms")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
