"""The two networks of the CIFAR-10 example: a residual one for the cloud, a small one for the edge.

Both take normalised images, float32 [n, 3, 32, 32], and give logits, float32 [n, 10]. They use only what
quantizes and cuts well: 3x3 and 1x1 convolutions, ReLU, max pooling, additions, one linear layer. Batch
normalisation has no trained scale, so it commutes with max pooling: it runs after the pooling in
training, where that is cheaper, and folds into the convolution before it for export.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

_LOGIT_SCALE = 1 / 9  # logits start small, so that the first steps are gentle
_WHITENING_EPSILON = 5e-4  # keeps the directions of least variance from being amplified without bound


class Convolution(nn.Module):
    """Convolution, optional 2x2 max pooling, normalisation, optional ReLU: [n, c, h, w] in and out."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        pool: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, momentum=0.2)
        self.norm.weight.requires_grad = False
        self.pool = pool
        self.relu = relu
        if kernel > 1:
            nn.init.dirac_(self.conv.weight.data[:inputs])  # starts by passing its inputs on

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.norm, nn.Identity):  # folded: runtimes fuse a ReLU right behind the convolution
            x = functional.relu(x) if self.relu else x
            return functional.max_pool2d(x, 2) if self.pool else x
        x = self.norm(functional.max_pool2d(x, 2) if self.pool else x)
        return functional.relu(x) if self.relu else x

    def fold(self) -> None:
        """Moves the normalisation into the convolution; the network must be in eval mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, then ReLU: [n, c, h, w] in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels)
        self.second = Convolution(channels, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class Classifier(nn.Module):
    """Maximum over each channel's 4x4 map, then a linear layer: [n, c, 4, 4] to logits [n, 10]."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)
        self.scale = _LOGIT_SCALE

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(functional.max_pool2d(x, 4).flatten(1))
        return logits if self.scale == 1.0 else logits * self.scale


class Stem(nn.Module):
    """A fixed 3x3 convolution that decorrelates neighbouring pixels, then ReLU: [n, 3, h, w] to [n, c, h, w].

    Half of its filters are the leading principal directions of 3x3 patches scaled to unit variance, the
    other half their negatives, so that ReLU loses nothing. Only the bias is trained.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, outputs, 3, padding=1)
        self.conv.weight.requires_grad = False
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x))

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Sets the filters from normalised images, float32 [n, 3, 32, 32]."""
        patches = functional.unfold(images, 3).transpose(1, 2).reshape(-1, 27)
        values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
        count = self.conv.out_channels // 2
        leading = (vectors / (values + _WHITENING_EPSILON).sqrt()).T.flip(0)[:count]
        filters = torch.cat([leading, -leading]).reshape(-1, 3, 3, 3)
        self.conv.weight.copy_(filters.to(self.conv.weight))


class FullNetwork(nn.Module):
    """The cloud's network: 1.9 M parameters, 102 M multiply-adds, three residual blocks.

    The trunk narrows to 64 channels where it can be cut: ``block2`` [n, 64, 8, 8] and ``block3``
    [n, 64, 4, 4], both behind a ReLU.
    """

    cuts: tuple[str, ...] = ("block2", "block3")

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(32)
        self.block1 = nn.Sequential(Convolution(32, 64, pool=True), Convolution(64, 64))
        self.block2 = nn.Sequential(Convolution(64, 128, pool=True), Residual(128), Convolution(128, 64, 1))
        self.block3 = nn.Sequential(Convolution(64, 256, pool=True), Residual(256), Convolution(256, 64, 1))
        self.block4 = Convolution(64, 256)
        self.classifier = Classifier(256)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        logits: Tensor = self.classifier(self.block4(self.block3(x)))
        return logits


class EdgeNetwork(nn.Module):
    """The edge's network: 0.34 M parameters, so that it stays below 400 kB in INT8."""

    cuts: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem(32)
        self.block1 = nn.Sequential(Convolution(32, 48, stride=2), Residual(48))
        self.block2 = nn.Sequential(Convolution(48, 64, pool=True), Residual(64))
        self.block3 = nn.Sequential(Convolution(64, 96, pool=True), Convolution(96, 144))
        self.classifier = Classifier(144)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.block3(self.block2(self.block1(self.stem(x)))))
        return logits


@torch.no_grad()
def fold_network(network: nn.Module) -> nn.Module:
    """A copy in eval mode, with every normalisation and scale folded into the weights before it."""
    folded = copy.deepcopy(network).cpu().float().eval()
    for module in folded.modules():
        if isinstance(module, Convolution):
            module.fold()
        elif isinstance(module, Classifier):
            module.linear.weight.mul_(module.scale)
            module.linear.bias.mul_(module.scale)
            module.scale = 1.0
    return folded
