"""FaceSets that take hours: made in parts, each written whole or not at all, then joined by streaming.

A killed run goes on where it stopped, because parts that are there are kept. Memory holds one part per process (and
the table), however many images there are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from facetransport.data.faceset import FaceSet, load_table, save_table
from facetransport.devices import WHOLE, Share, cores
from facetransport.files import replacing, write_json

if TYPE_CHECKING:
    import pandas as pd

PLAN, TABLE = "plan.json", "table.npz"  # the table is written last
THREADS = "OMP_NUM_THREADS"  # heeded by numpy's and torch's libraries when they are loaded
Make = Callable[[Any], FaceSet]
"""make(part) -> the images of a part. It travels to other processes: what cannot, it opens there, when first called."""


def build(
    folder: Path,
    parts: Sequence[Any],
    sizes: Sequence[int],
    make: Make,
    workers: int | None = None,
    label: str = "",
    share: Share = WHOLE,
    first: Callable[[pd.DataFrame], int] = len,
) -> FaceSet | None:
    """The FaceSet of all parts, in order, written into ``folder`` (images.npy, table.npz).

    sizes: images of each part. workers: processes, by default one per core; a call from a script needs the usual
    ``if __name__ == "__main__"``. label: of the progress bar. share: (i, n) writes parts i, i + n, ... only, as one of
    n jobs on one folder; the one that ends last joins them, the others return None. first: how many rows of the whole
    table stay, by default all. Raises DiskFull where there is no room.
    """
    if not parts or len(parts) != len(sizes):
        raise ValueError(f"parts: expected at least one, and a size for each, got {len(parts)} and {len(sizes)} sizes")
    mine = mine_of(len(parts), share)
    todo = [i for i in mine if not part_file(folder, i).is_file()]
    with tqdm(total=sum(sizes[i] for i in mine), unit="image", desc=label, disable=None) as bar:
        bar.update(sum(sizes[i] for i in mine) - sum(sizes[i] for i in todo))
        for done in _write_all(folder, [(i, parts[i]) for i in todo], make, workers or cores()):
            bar.update(sizes[done])
    join = _joined if share == WHOLE else _joined_by_the_last
    return join(folder, len(parts), first)


def _joined_by_the_last(folder: Path, count: int, first: Callable[[pd.DataFrame], int]) -> FaceSet | None:
    with FileLock(folder / "shard-join.lock"):  # goes when the parts go
        if (folder / TABLE).is_file():
            return FaceSet.load(folder)  # the last two ended together
        there = all(part_file(folder, i).is_file() for i in range(count))
        return _joined(folder, count, first) if there else None


def mine_of(count: int, share: Share) -> range:
    """Numbers of the parts that a job writes."""
    index, jobs = share
    if not 0 <= index < jobs:
        raise ValueError(f"share: expected (i, n) with 0 <= i < n, got {share}")
    return range(index, count, jobs)


def claim(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Note in ``folder`` (plan.json) what is made there; returns whether it is finished already.

    Raises ValueError where something else was begun: parts of two plans must not mix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    used = (folder / "images.npy").exists() or any(folder.glob("shard-*"))  # looked at first: jobs begin together
    if not (folder / PLAN).is_file():
        if used:
            raise ValueError(f"{folder}: holds images, but no {PLAN} that says which; expected an empty folder")
        write_json(folder / PLAN, plan)
    begun, wanted = json.loads((folder / PLAN).read_text(encoding="utf-8")), json.loads(json.dumps(plan))
    if begun != wanted:
        raise ValueError(f"{folder}: {_difference(begun, wanted)}; use another folder, or delete this one")
    finished = (folder / TABLE).is_file()
    if finished:
        remove_parts(folder)
    return finished


def _difference(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    return "; ".join(f"begun with {name} {begun.get(name)}, now {wanted.get(name)}" for name in names)


# --------------------------------------------------------------------------------------------------------- the parts


def part_file(folder: Path, number: int) -> Path:
    """Where a part's array is written; it is there when the part is complete."""
    return folder / f"shard-{number:06d}.npy"


def _table(folder: Path, number: int) -> Path:
    return part_file(folder, number).with_suffix(".table.npz")


def _write(folder: Path, make: Make, number: int, part: Any) -> int:
    made = make(part)
    with replacing(_table(folder, number)) as temporary:
        save_table(made.table, temporary)
    with replacing(part_file(folder, number)) as temporary:  # last: a part with images is complete
        np.save(temporary, made.images)
    return number


def _joined(folder: Path, count: int, first: Callable[[pd.DataFrame], int]) -> FaceSet:
    import pandas as pd  # a second, for who only reads

    tables = [load_table(_table(folder, i)) for i in range(count)]
    table = pd.concat(tables, ignore_index=True)
    rows = first(table)
    with replacing(folder / "images.npy") as temporary:
        _stream(folder, [len(table) for table in tables], rows, temporary)
    with replacing(folder / TABLE) as temporary:
        save_table(table.iloc[:rows], temporary)
    remove_parts(folder)
    return FaceSet.load(folder)


def _stream(folder: Path, sizes: Sequence[int], rows: int, target: Path) -> None:
    """One .npy file of the parts' first images: a header, then their bytes (a memory map would count as memory)."""
    shape = np.load(part_file(folder, 0), mmap_mode="r").shape[1:]
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    with target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for i, size in enumerate(sizes):
            images = np.load(part_file(folder, i))
            if images.shape != (size, *shape):
                raise ValueError(f"{part_file(folder, i)}: expected images {(size, *shape)}, got {images.shape}")
            file.write(images[:rows].data)
            rows -= min(rows, size)


def remove_parts(folder: Path) -> None:
    """Once they are joined."""
    for path in [*folder.glob("shard-*"), *folder.glob(".*-shard-*")]:  # and what a kill left of `replacing`
        path.unlink()


# ----------------------------------------------------------------------------------------------------- the processes


def _write_all(folder: Path, todo: Sequence[tuple[int, Any]], make: Make, workers: int) -> Iterator[int]:
    """Numbers of parts as they are written, in order."""
    if len(todo) < 2 or workers < 2:
        for number, part in todo:
            yield _write(folder, make, number, part)
        return
    context = multiprocessing.get_context("spawn")
    # Between our own processes only, as multiprocessing does; by value: torch would fill shared memory with tensors.
    packed = pickle.dumps((folder, make))
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, (packed,))
    with _one_thread_each(), pool:
        yield from pool.map(_write_job, todo)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """For processes started inside: with a thread a core in each, they would wait for each other."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        os.environ.pop(THREADS)
        os.environ.update({THREADS: before} if before is not None else {})


_worker: tuple[Path, Make]  # what a worker process holds


def _start_worker(packed: bytes) -> None:
    global _worker
    _end_with_parent()
    _worker = pickle.loads(packed)


def _end_with_parent() -> None:
    """A killed parent would leave its workers waiting for jobs for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_job(job: tuple[int, Any]) -> int:
    return _write(*_worker, *job)
