"""Where the weights are: inside two wheels, found without importing the packages.

`face_recognition_models` cannot be imported (its `__init__` needs pkg_resources, gone from setuptools 82; see
ageitgey/face_recognition_models#21), and `facenet_pytorch` would import torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from faceapp.errors import WeightsError

DLIB_RESNET = ("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat")
DLIB_LANDMARKS = ("face_recognition_models", "models/shape_predictor_5_face_landmarks.dat")
MTCNN_PNET = ("facenet_pytorch", "data/pnet.pt")
MTCNN_RNET = ("facenet_pytorch", "data/rnet.pt")
MTCNN_ONET = ("facenet_pytorch", "data/onet.pt")


def package_file(package: str, name: str) -> Path:
    """The path of `name` inside an installed package. Raises WeightsError when it is not there."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise WeightsError(f"{name} is missing: install the package {package} again")
    return path


def torch_file(path: Path) -> Any:
    """What torch saved in `path`, tensors and plain containers only: a pickle that would run code is refused.

    Raises WeightsError.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # its unpickler raises nearly every builtin exception on a damaged file
        raise WeightsError(f"{path} is not a file that torch saved, or it is damaged") from error
