"""facenet-pytorch's InceptionResnetV1 (MIT), with weights that the user brings, and galleries made for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from faceapp.errors import WeightsError
from faceapp.recognition import vision
from faceapp.recognition.files import torch_file

CHIP_PX = 160
DIMENSION = 512


class _Standardised(nn.Module):
    """RGB [N, 3, 160, 160], 0 to 255 -> unit vectors [N, 512]: facenet_pytorch's fixed_image_standardization first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, chips: Tensor) -> Tensor:
        descriptors: Tensor = self.network((chips - 127.5) / 128)
        return descriptors


def load(weights: str) -> nn.Module:
    """The network with the state dict in the file `weights` (VGGFace2's is the one to have).

    Raises WeightsError when no file is named, or it is missing, or it is not this network's.
    """
    if not weights:
        raise WeightsError("the facenet embedder needs a weights file: name it in FACEAPP_WEIGHTS")
    state = torch_file(Path(weights))
    try:
        network: nn.Module = vision.facenet_pytorch().InceptionResnetV1()
    except ImportError as error:
        raise WeightsError(f"the facenet embedder needs the package facenet-pytorch: {error}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{weights} holds no state dict")
    wanted = network.state_dict()
    # the classifier's last layer, which names VGGFace2's own people, is of no use here
    found = {name: value for name, value in state.items() if not str(name).startswith("logits.")}
    if found.keys() != wanted.keys() or any(
        not isinstance(value, Tensor) or value.shape != wanted[name].shape for name, value in found.items()
    ):
        raise WeightsError(f"{weights} holds the weights of another network than InceptionResnetV1")
    if not all(bool(torch.isfinite(value).all()) for value in found.values()):
        raise WeightsError(f"{weights} is damaged: a weight is not finite")
    network.load_state_dict(found)
    return _Standardised(network)


def cut_chip(image: Image.Image, box: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The box, uint8 RGB [160, 160, 3], as facenet_pytorch's extract_face cuts it: inside the picture, no margin."""
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(image.width, int(box[2])), min(image.height, int(box[3]))
    inside = (left, top, max(right, left + 1), max(bottom, top + 1))
    return np.asarray(image.crop(inside).resize((CHIP_PX, CHIP_PX), Image.Resampling.BILINEAR))


def load_course_gallery(path: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """The people in a `data.pt` = [embeddings, names], as courses with facenet-pytorch ship it.

    Returns a name and a descriptor [512] for each. Raises WeightsError when the file has another shape.
    """
    found = torch_file(path)
    wrong = WeightsError(f"{path} is no gallery: a list of embeddings and a list of as many names are expected")
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise wrong
    embeddings, names = found
    if not isinstance(embeddings, list | tuple | Tensor) or not isinstance(names, list | tuple):
        raise wrong
    try:
        if not all(isinstance(name, str) for name in names):
            raise wrong
        return [
            (name, embedding.detach().float().numpy().reshape(DIMENSION))
            for name, embedding in zip(names, embeddings, strict=True)
        ]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # tensors are of many kinds
        raise wrong from error
