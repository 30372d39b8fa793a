"""Recognition speed beside dlib and facenet-pytorch: `python -m benchmarks.recognition`.

All three do the same on the same photos in the same run: decode a file, find its faces, describe each. One thread
each, CPU seconds of this process, in rounds that take turns, so that a busy machine slows all alike; the medians over
the rounds are printed. dlib does what the face_recognition package does: HOG detector without upsampling, five
landmarks, ResNet. facenet-pytorch does MTCNN and InceptionResnetV1, with random weights (they cost the same).
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Mapping

import dlib
import numpy as np
import torch
from PIL import Image

from faceapp import images
from faceapp.operations.samples import sample_photos
from faceapp.recognition import Recogniser, vision
from faceapp.recognition.files import DLIB_LANDMARKS, DLIB_RESNET, package_file

Engine = Callable[[bytes], int]
"""Describes all faces in a photo and says how many there were."""

GOAL = 3.0
SMALL_PX = 250
MAX_PIXELS, MAX_SIDE_PX = 64_000_000, 20_000


def faceapp_engine(precision: str) -> Engine:
    recogniser = Recogniser(precision=precision, device="cpu", max_pixels=MAX_PIXELS, max_side_px=MAX_SIDE_PX)
    return lambda photo: len(recogniser.describe(photo).faces)


def dlib_engine() -> Engine:
    detector = dlib.get_frontal_face_detector()
    landmarks = dlib.shape_predictor(str(package_file(*DLIB_LANDMARKS)))
    network = dlib.face_recognition_model_v1(str(package_file(*DLIB_RESNET)))

    def describe(photo: bytes) -> int:
        pixels = np.array(Image.open(io.BytesIO(photo)).convert("RGB"))
        faces = detector(pixels, 0)
        for face in faces:
            network.compute_face_descriptor(pixels, landmarks(pixels, face))
        return len(faces)

    return describe


def facenet_engine() -> Engine:
    package = vision.facenet_pytorch()
    if not vision.compiled_ops():  # its own fallback for the operator that torchvision does not bring here
        detect_face = package.models.utils.detect_face
        detect_face.batched_nms = lambda *boxes: detect_face.batched_nms_numpy(*boxes, "Union")
    detector = package.MTCNN(keep_all=True, device="cpu")
    network = package.InceptionResnetV1().eval()

    @torch.inference_mode()
    def describe(photo: bytes) -> int:
        faces = detector(Image.open(io.BytesIO(photo)).convert("RGB"))
        return 0 if faces is None else len(network(faces))

    return describe


def photo_sets() -> dict[str, list[bytes]]:
    """The sample photos of whole faces as they are, and their faces alone as small photos.

    In these the face is half of the side, so that every engine finds it: one that misses a face has less to do.
    """
    paths = sample_photos()
    full = [paths[name].read_bytes() for name in paths if "partial" not in name]
    recogniser = Recogniser(device="cpu", max_pixels=MAX_PIXELS, max_side_px=MAX_SIDE_PX)
    return {f"{SMALL_PX} px": [_small(recogniser, photo) for photo in full], "full size": full}


def _small(recogniser: Recogniser, photo: bytes) -> bytes:
    box = recogniser.describe(photo).faces[0].box
    x, y, side = (box.left + box.right) / 2, (box.top + box.bottom) / 2, box.bottom - box.top
    image = images.decode(photo, max_pixels=MAX_PIXELS, max_side_px=MAX_SIDE_PX, draft_side_px=0).image
    image = image.crop((round(x - side), round(y - side), round(x + side), round(y + side)))
    out = io.BytesIO()
    image.resize((SMALL_PX, SMALL_PX), Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
    return out.getvalue()


def measure(engines: Mapping[str, Engine], photos: list[bytes], rounds: int) -> dict[str, tuple[float, int]]:
    """Median CPU seconds for a photo, and the faces found in one round, for each engine."""
    faces = {name: sum(engine(photo) for photo in photos) for name, engine in engines.items()}  # also warms up
    taken_s: dict[str, list[list[float]]] = {name: [[] for _ in photos] for name in engines}
    for _ in range(rounds):
        for index, photo in enumerate(photos):
            for name, engine in engines.items():
                start_s = time.process_time()
                engine(photo)
                taken_s[name][index].append(time.process_time() - start_s)
    return {
        name: (statistics.mean(statistics.median(times) for times in taken_s[name]), faces[name]) for name in engines
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often every photo is described (default 15)")
    rounds = parser.parse_args().rounds
    engines = {
        "faceapp": faceapp_engine("auto"),
        "faceapp, fp32": faceapp_engine("fp32"),
        "dlib": dlib_engine(),
        "facenet-pytorch": facenet_engine(),
    }
    torch.set_num_threads(1)
    short_of_goal = []
    print(f"CPU ms a photo, one thread, medians of {rounds} rounds that take turns; goal: {GOAL:g} times each")
    print(f"{'photos':<12}{'engine':<18}{'ms':>8}{'images/s':>10}{'faces':>7}{'vs dlib':>9}{'vs facenet':>12}")
    for label, photos in photo_sets().items():
        found = measure(engines, photos, rounds)
        for name, (cpu_s, faces) in found.items():
            ratios = [found[other][0] / cpu_s for other in ("dlib", "facenet-pytorch")]
            print(
                f"{f'{len(photos)} of {label}' if name == 'faceapp' else '':<16}{name:<16}{1000 * cpu_s:>6.1f}"
                f"{1 / cpu_s:>10.1f}{faces:>7}{ratios[0]:>8.1f}x{ratios[1]:>11.1f}x"
            )
            if name == "faceapp" and min(ratios) < GOAL:
                short_of_goal.append(label)
    print(f"below the goal: {', '.join(short_of_goal)}" if short_of_goal else "the goal is met")


if __name__ == "__main__":
    main()
