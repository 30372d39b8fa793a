"""dlib's face recognition network (dlib_face_recognition_resnet_model_v1.dat, CC0) as a torch module.

The layers, their order and the order of what the file holds are those of dlib's examples/dnn_face_recognition_ex.cpp
(`anet_type`) and dlib/dnn/layers.h. A 29-layer ResNet: 7x7 stem, 14 blocks of two 3x3 convolutions, 128 numbers out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceapp.recognition.dlib_format import DlibReader

CHIP_PX = 150
DIMENSION = 128

# (channels in, channels out, halves the picture, row and column to add after it): 35 -> 17 -> 8 -> 3 + 1 -> 1 + 1 px
_BLOCKS = (
    *[(32, 32, False, 0)] * 3,
    *[(32, 64, True, 0)],
    *[(64, 64, False, 0)] * 3,
    *[(64, 128, True, 0)],
    *[(128, 128, False, 0)] * 2,
    *[(128, 256, True, 1)],
    *[(256, 256, False, 0)] * 2,
    *[(256, 256, True, 1)],
)


class _Block(nn.Module):
    """Two convolutions and a shortcut; dlib's affine layers are folded into the convolutions."""

    def __init__(self, channels_in: int, channels_out: int, halves: bool, pad: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.halves, self.pad, self.new_channels = halves, pad, channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.halves:
            # dlib's add_prev fills the smaller side with zeros: here the shortcut's channels, there rows and columns
            x = F.pad(F.avg_pool2d(x, 2, 2), (0, 0, 0, 0, 0, self.new_channels))
            y = F.pad(y, (0, self.pad, 0, self.pad))
        return F.relu(x + y)


class DlibResNet(nn.Module):
    """RGB chips [N, 3, 150, 150], 0 to 255 -> descriptors [N, 128].

    dlib's mean and scale are folded into the stem, which can take them exactly because it has no padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.Sequential(*(_Block(*block) for block in _BLOCKS))
        self.head = nn.Linear(256, DIMENSION, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(chips)), 3, 2)
        descriptors: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return descriptors

    def convolutions(self) -> list[nn.Conv2d]:
        """From input to output."""
        blocks = [block for block in self.blocks if isinstance(block, _Block)]
        return [self.stem, *(conv for block in blocks for conv in (block.first, block.second))]


@dataclass
class _Convolution:
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: tuple[int, int]
    padding: tuple[int, int]
    gain: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None


@dataclass
class _Network:
    convolutions: list[_Convolution]
    head: NDArray[np.float32]
    mean_rgb: list[float]


def load(path: Path) -> DlibResNet:
    """The network in `path`, float32, without gradients. Raises WeightsError unless every byte is as expected."""
    reader = DlibReader(path)
    stored = _read(reader)
    network = DlibResNet().eval()
    for conv, found in zip(network.convolutions(), stored.convolutions, strict=True):
        shape = tuple(conv.weight.shape)
        if (shape, conv.stride, conv.padding) != (found.weight.shape, found.stride, found.padding):
            reader.fail(f"a convolution has the shape {found.weight.shape}, not {shape}")
        if found.gain is None or found.shift is None:
            reader.fail("a convolution has no affine layer")
        weight = found.weight * found.gain.astype(np.float64)[:, None, None, None]
        bias = found.bias * found.gain.astype(np.float64) + found.shift
        if conv is network.stem:  # it sees (pixel - mean) / 256
            weight /= 256
            bias -= (weight * np.asarray(stored.mean_rgb)[None, :, None, None]).sum((1, 2, 3))
        conv.weight.data = torch.from_numpy(weight).float()
        conv.bias.data = torch.from_numpy(bias).float()  # type: ignore[union-attr]
    network.head.weight.data = torch.from_numpy(stored.head.T.copy())
    return network.requires_grad_(False)


def _layers() -> list[str]:
    """The file's layers, output first."""
    block = ["affine", "con", "relu", "affine", "con"]
    layers = ["fc", "avg_pool"]
    for _, _, halves, _ in reversed(_BLOCKS):
        layers += ["relu", "add_prev", *(["avg_pool", "skip", "tag"] if halves else []), *block, "tag"]
    return [*layers, "max_pool", "relu", "affine", "con"]


def _read(reader: DlibReader) -> _Network:
    """The versions of all layers from the output to the input, then their contents from the input to the output."""
    layers = _layers()
    reader.expect("the loss layer's version", 1)
    reader.expect("the loss", "loss_metric_2")
    reader.reals(2)
    for layer in layers[:-1]:
        reader.expect("a layer's version", 1 if layer in ("tag", "skip") else 2)
    reader.expect("the input layer's version", 3)
    reader.expect("the input", "input_rgb_image_sized")
    mean_rgb = reader.reals(3)
    for _ in range(2):
        reader.expect("the chip size", CHIP_PX)

    convolutions: list[_Convolution] = []
    head = np.zeros(0, np.float32)
    for number, layer in enumerate(reversed(layers)):
        if layer in ("tag", "skip"):
            continue
        if layer == "con":
            convolutions.append(_convolution(reader))
        elif layer == "affine":
            convolutions[-1].gain, convolutions[-1].shift = _affine(reader, len(convolutions[-1].bias))
        elif layer == "fc":
            head = _fully_connected(reader)
        else:
            reader.expect("a layer", f"{layer}_2" if "pool" in layer else f"{layer}_")
            if "pool" in layer:
                reader.integers(6)  # window, stride, padding: what the module above has
        for _ in range(3):
            reader.boolean()
        for _ in range(3):
            reader.tensor()  # gradients and outputs of the training, empty
        if number == 0:
            reader.integer()
    reader.end()
    return _Network(convolutions, head, mean_rgb)


def _convolution(reader: DlibReader) -> _Convolution:
    reader.expect("a layer", "con_4")
    values = reader.tensor().ravel()
    filters, _, _, stride_y, stride_x, padding_y, padding_x = reader.integers(7)
    shape = _alias(reader)
    _alias(reader)
    reader.reals(4)  # learning rates
    size = math.prod(shape)
    if len(values) != size + filters:
        reader.fail(f"a convolution has {len(values)} weights, not {size + filters}")
    return _Convolution(values[:size].reshape(shape), values[size:], (stride_y, stride_x), (padding_y, padding_x))


def _affine(reader: DlibReader, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    reader.expect("a layer", "affine_")
    values = reader.tensor().ravel()
    _alias(reader)
    _alias(reader)
    reader.integer()
    if len(values) != 2 * channels:
        reader.fail(f"an affine layer has {len(values)} weights, not {2 * channels}")
    return values[:channels], values[channels:]


def _fully_connected(reader: DlibReader) -> NDArray[np.float32]:
    reader.expect("a layer", "fc_2")
    outputs, inputs = reader.integers(2)
    values = reader.tensor()
    if (inputs, outputs) != (256, DIMENSION) or values.size != inputs * outputs:
        reader.fail(f"the last layer is {inputs} x {outputs}")
    _alias(reader)
    _alias(reader)
    reader.integer()
    reader.reals(4)
    return values.reshape(inputs, outputs)


def _alias(reader: DlibReader) -> list[int]:
    """The shape of a part of a layer's weights."""
    reader.expect("the alias version", 1)
    return reader.integers(4)
