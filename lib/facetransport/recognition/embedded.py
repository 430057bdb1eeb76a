"""Embeddings of FaceSets of any size, written in shards and joined: for whoever works on features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock

from facetransport.data import shards
from facetransport.data.faceset import FaceSet, digest_of, save_table
from facetransport.devices import WHOLE, Share
from facetransport.files import replacing
from facetransport.recognition.recogniser import Recogniser, embed_faceset

ARRAY = "embeddings.npy"
PART = 4096  # images a shard


def embed_into(
    folder: Path, source: Path, recogniser: Recogniser, made_by: str = "", share: Share = WHOLE
) -> np.ndarray | None:
    """float32 (N, dim), unit norm: ``embeddings.npy`` of the FaceSet in ``source``, beside its table; resumes after a
    kill. Row i is image i's.

    made_by: tells the recogniser from others (a digest of its file). share: (i, n) embeds every n-th shard, as one of n
    jobs on one folder; the last to end joins them, the others return None.
    """
    faces = FaceSet.load(source)
    plan = {"recogniser": recogniser.name, "made_by": made_by, "dim": recogniser.dim} | digest_of(source)
    if not shards.claim(folder, plan):
        starts = range(0, len(faces), PART)
        for number in shards.mine_of(len(starts), share):
            if not shards.part_file(folder, number).is_file():
                _embed_part(shards.part_file(folder, number), faces, starts[number], recogniser)
        if not _joined(folder, faces, len(starts)):
            return None
    return np.load(folder / ARRAY, mmap_mode="r")


def _embed_part(path: Path, faces: FaceSet, start: int, recogniser: Recogniser) -> None:
    found = embed_faceset(recogniser, faces.select(slice(start, start + PART)))
    with replacing(path) as temporary:
        np.save(temporary, found)


def _joined(folder: Path, faces: FaceSet, count: int) -> bool:
    parts = [shards.part_file(folder, number) for number in range(count)]
    with FileLock(folder / "shard-join.lock"):  # goes when the parts go
        if (folder / shards.TABLE).is_file():
            return True  # the last two ended together
        if not all(part.is_file() for part in parts):
            return False
        with replacing(folder / ARRAY) as temporary:
            np.save(temporary, np.concatenate([np.load(part) for part in parts]))
        with replacing(folder / shards.TABLE) as temporary:
            save_table(faces.table, temporary)
        shards.remove_parts(folder)
    return True
