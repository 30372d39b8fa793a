"""How the networks run: on which device, in which arithmetic, with how many threads.

A worker loads the model once and forks its processes afterwards, so that they share its memory. That only works while
torch has one thread (its thread pool does not survive a fork) and CUDA has not started in the parent: `use_one_thread`
comes first, CUDA is asked for through NVML, and a network moves to the GPU at its first call in the child.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faceapp.errors import ConfigError


def use_one_thread() -> None:
    """One torch thread for this process and all it forks: two such processes beat one with two threads by half."""
    torch.set_num_threads(1)


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA when there is one, without starting it here. Raises ConfigError for a device that is not there."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # ask the driver: the runtime would not survive a fork
    has_cuda = torch.version.cuda is not None and torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"{wanted!r} is no device: it is auto, cpu or cuda:N") from error
    if device.type == "cuda" and not has_cuda:
        raise ConfigError(f"the device {wanted} was asked for, but torch finds no CUDA here")
    return device


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a CPU that multiplies it in hardware, and float32 elsewhere.

    Measured for dlib's ResNet on a Zen 4 core: 1.4 times as fast for one face, 1.8 times for eight.
    """
    if wanted not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"{wanted!r} is no precision: it is auto, fp32 or bf16")
    if wanted == "auto":
        wanted = "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX-512 BF16 or AMX BF16 instructions."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class Network:
    """A torch module behind numpy: pixels in, float32 out, channels last, without gradients."""

    def __init__(
        self, module: nn.Module, *, side_px: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._device, self._dtype, self._placed = device, dtype, device.type == "cpu"
        module = module.eval().requires_grad_(False).to(dtype)
        self._module: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._placed:
            self._module = _frozen(self._module, self._input(np.zeros((2, side_px, side_px, 3), np.uint8)))

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> the module's output for them as [N, 3, H, W] in 0 to 255."""
        if not self._placed:
            self._module, self._placed = self._module.to(self._device), True
        output: NDArray[np.float32] = self._module(self._input(pixels)).float().cpu().numpy()
        return output

    def _input(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Channels last in memory is what [N, H, W, 3] already is: nothing is copied but to convert."""
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device=self._device, dtype=self._dtype)


def _frozen(module: nn.Module, example: Tensor) -> nn.Module:
    """The module with its weights packed into the graph: 8 to 18 % less CPU for dlib's ResNet on one face, and 5 to 8 %
    for MTCNN's networks (measured on a Zen 4 core).

    torch.jit is deprecated in favour of torch.compile, which takes about a minute to start and needs a compiler on the
    machine: too dear for a worker that is started when photos wait.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        frozen: nn.Module = torch.jit.freeze(torch.jit.trace(module, example))  # type: ignore[no-untyped-call]
    return frozen
