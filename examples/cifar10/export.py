"""A trained network as one ONNX file: folded, checked, with readable names at its cut points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from examples.cifar10.networks import fold_network

OPSET = 17
_TOLERANCE = 1e-3  # largest difference of a logit between torch and ONNX Runtime


class _WithCuts(nn.Module):
    """Gives the tensors at the cut points as further outputs, so that the exporter names them."""

    def __init__(self, network: nn.Module, cuts: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.seen: dict[str, Tensor] = {}
        self.cuts = cuts
        for name in cuts:
            network.get_submodule(name).register_forward_hook(self._remember(name))

    def _remember(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[name] = output

        return hook

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(x)
        return (logits, *(self.seen[name] for name in self.cuts))


def export(network: nn.Module, path: Path, cuts: tuple[str, ...] = ()) -> None:
    """Writes ``path``: ``input`` float32 [batch, 3, 32, 32] to ``logits`` float32 [batch, 10].

    ``cuts`` names sub-modules whose outputs keep these names as tensors inside the graph.
    """
    folded = fold_network(network)
    example = torch.randn(2, 3, 32, 32)
    outputs = ("logits", *cuts)
    torch.onnx.export(
        _WithCuts(folded, cuts), (example,), path, opset_version=OPSET, dynamo=False,
        input_names=["input"], output_names=list(outputs),
        dynamic_axes={name: {0: "batch"} for name in ("input", *outputs)},
    )  # fmt: skip
    model = onnx.load(path)
    del model.graph.output[1:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    _check(folded, path)


@torch.no_grad()
def _check(network: nn.Module, path: Path) -> None:
    """Raises ``RuntimeError`` when ONNX Runtime and torch disagree on seeded noise."""
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = np.abs(session.run(["logits"], {"input": x.numpy()})[0] - network(x).numpy()).max()
    if difference > _TOLERANCE:
        raise RuntimeError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}")
