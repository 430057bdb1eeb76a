"""dlib's ResNet on aligned images, in this process or on every core (dlib holds Python's lock while it computes)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import cv2
import dlib
import numpy as np

from facetransport.data.alignment import warp
from facetransport.data.detection import CHIP, chip_to_template, model_file

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
BATCH = 16  # images a job; results do not depend on it
POOL_FROM = 64  # below it, starting processes costs more than it saves


@lru_cache(maxsize=1)
def network() -> dlib.face_recognition_model_v1:
    return dlib.face_recognition_model_v1(str(model_file(WEIGHTS)))


def chips(images: np.ndarray) -> np.ndarray:
    """uint8 (B, S, S, 3) in the template -> uint8 (B, 150, 150, 3), dlib's face chips (borders replicated).

    One fixed similarity, in which eye centres meet: no detector, which would fail on some generated faces.
    """
    matrix = cv2.invertAffineTransform(chip_to_template(images.shape[1]))
    return np.stack([warp(image, matrix, CHIP) for image in images])


def describe(images: np.ndarray) -> np.ndarray:
    """float32 (B, 128): dlib's raw embeddings of images uint8 (B, S, S, 3) in the template."""
    return np.array(network().compute_face_descriptor(list(chips(images))), np.float32)


def describe_all(images: np.ndarray, workers: int | None = None) -> np.ndarray:
    """As `describe`, in jobs of 16 images, on ``workers`` processes (default: every core where it pays)."""
    jobs = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    workers = workers or ((os.cpu_count() or 1) if len(images) >= POOL_FROM else 1)
    done = map(describe, jobs) if workers == 1 else pool(workers).map(describe, jobs)
    return np.concatenate(list(done))


@lru_cache(maxsize=1)
def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that keep their network between calls; they end with this process, silently when interrupted."""
    quietly = (signal.SIGINT, signal.SIG_DFL)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, quietly)
