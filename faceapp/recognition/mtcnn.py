"""MTCNN's three networks, from the state dicts inside the facenet-pytorch wheel.

The input is RGB in 0 to 255: the usual (pixel - 127.5) / 128 is folded into the first convolution, which can take it
exactly because none of the convolutions has padding. All heads are one layer, and give logits: no face, face, box
correction (4), landmarks (10: five x, five y).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceapp.recognition.files import MTCNN_ONET, MTCNN_PNET, MTCNN_RNET, package_file, torch_file

StateDict = dict[str, Tensor]


def pnet() -> nn.Module:
    """RGB [N, 3, H, W] -> [N, 6, rows, columns], one for every second place of a 12 px window."""
    return _Stage(_state(MTCNN_PNET), pools=(2, 0, 0), dense=None, heads=("conv4_1", "conv4_2"))


def rnet() -> nn.Module:
    """RGB [N, 3, 24, 24] -> [N, 6]."""
    return _Stage(_state(MTCNN_RNET), pools=(3, 3, 0), dense=4, heads=("dense5_1", "dense5_2"))


def onet() -> nn.Module:
    """RGB [N, 3, 48, 48] -> [N, 16]."""
    return _Stage(_state(MTCNN_ONET), pools=(3, 3, 2, 0), dense=5, heads=("dense6_1", "dense6_2", "dense6_3"))


class _Stage(nn.Module):
    """Convolutions with PReLU and, where its size is not 0, a pool; perhaps a dense layer; the heads."""

    def __init__(self, state: StateDict, *, pools: Sequence[int], dense: int | None, heads: Sequence[str]) -> None:
        super().__init__()
        self.pools = pools
        count = len(pools)
        convolutions = [_convolution(state[f"conv{n}.weight"], state[f"conv{n}.bias"]) for n in range(1, count + 1)]
        _take_pixels(convolutions[0])
        self.convolutions = nn.ModuleList(convolutions)
        layers = [*range(1, count + 1), *([dense] if dense else [])]
        self.slopes = nn.ParameterList(state[f"prelu{n}.weight"] for n in layers)
        head = torch.cat([state[f"{name}.weight"] for name in heads])
        bias = torch.cat([state[f"{name}.bias"] for name in heads])
        self.dense: nn.Linear | None = None
        self.head: nn.Module = _convolution(head, bias)
        if dense:
            channels = state[f"conv{len(pools)}.weight"].shape[0]
            self.dense = _dense(state[f"dense{dense}.weight"], state[f"dense{dense}.bias"], channels)
            self.head = _linear(head, bias)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, slope, pool in zip(self.convolutions, self.slopes, self.pools, strict=False):
            x = F.prelu(convolution(x), slope)
            if pool:
                x = F.max_pool2d(x, pool, 2, ceil_mode=True)
        if self.dense is not None:
            x = F.prelu(self.dense(x.flatten(1)), self.slopes[-1])
        logits: Tensor = self.head(x)
        return logits


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    out_channels, in_channels, side, _ = weight.shape if weight.ndim == 4 else (*weight.shape, 1, 1)
    layer = nn.Conv2d(in_channels, out_channels, side)
    layer.weight.data, layer.bias.data = weight.view(layer.weight.shape).clone(), bias.clone()  # type: ignore[union-attr]
    return layer


def _take_pixels(first: nn.Conv2d) -> None:
    """Fold (pixel - 127.5) / 128 into the first convolution."""
    first.weight.data /= 128
    first.bias.data -= 127.5 * first.weight.data.sum((1, 2, 3))  # type: ignore[union-attr]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer


def _dense(weight: Tensor, bias: Tensor, channels: int) -> nn.Linear:
    """The weights were trained on (column, row, channel); torch flattens (channel, row, column)."""
    side = round((weight.shape[1] / channels) ** 0.5)
    turned = weight.view(-1, side, side, channels).permute(0, 3, 2, 1).flatten(1)
    return _linear(turned, bias)


def _state(file: tuple[str, str]) -> StateDict:
    state: StateDict = torch_file(package_file(*file))
    return state
