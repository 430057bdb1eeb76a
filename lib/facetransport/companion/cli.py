"""``facetransport``: what is installed and built, build it, run a notebook, look into a folder, search by words."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facetransport import devices, files, version
from facetransport.companion import artifacts, profiles
from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.profiles import Profile
from facetransport.companion.results import figures_root, is_rich, jpeg, lighter
from facetransport.companion.turns import Turns

if TYPE_CHECKING:
    import pandas as pd

KNOWN = "profiles.txt"  # in the cache: profiles by path that made something there
EXPECTED = (ValueError, FileNotFoundError, files.DiskFull, artifacts.CorruptArtifact)
PLACE = (
    "expected a place to read and write in: see whose it is and what lies in its way, or name another (the cache: set "
    f"{artifacts.VARIABLE})"
)
ARTEFACT = re.compile(r"[0-9a-f]{16}(\.partial|\.corrupt|\.lock|\.owner)?")
SPEED_TAG = "speed"  # of cells whose output depends on the machine
INJECTED_TAG = "injected-parameters"  # papermill's
KINDS = ("folders", "ffhq", "celeba", "recordio", "verification", "webdataset")  # of photographs on disk
RESPONSIBLE = (
    "Drawing a face from an embedding is an attack on stored biometric templates: use it on people who agreed, or on "
    "public research data, to learn what templates reveal."
)
VERSIONS = ("torch", "numpy", "diffusers", "insightface", "onnxruntime", "dlib-bin", "anny", "warp-lang", "kornia")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Bad input ends in one sentence, not in a traceback."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("facetransport").setLevel(logging.INFO)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED as error:
        print(f"facetransport {options.command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of a place: read-only, a file where a folder should be
        if error.filename is None:
            raise
        print(f"facetransport {options.command}: {error.filename}: {error.strerror}; {PLACE}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="facetransport", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "doctor", _doctor, "versions, device, cache, shipped weights; fails if something is missing")
    show = _command(commands, "profiles", _profiles, "list the profiles, or print one as it is resolved")
    show.add_argument("name", nargs="?", help="smoke, laptop, paper or the path of a YAML file")
    _profile_option(_command(commands, "status", _status, "each artefact of a profile: shipped, cached or to build"))
    train = _command(commands, "train", _train, "train every network of a profile from nothing; resumes after a kill")
    _profile_option(train)
    train.add_argument("--only", metavar="STAGE", help="one stage as `status` names it, with what it needs")
    train.add_argument("--retrain", action="store_true", help="forget cached networks first")
    train.add_argument("--missing", action="store_true", help="only what is neither shipped nor cached")
    train.add_argument("--dry-run", action="store_true", help="say what would be trained, and what it would cost")
    train.add_argument("--ship", action="store_true", help="copy the results into the package's weights folder")
    sets = _command(commands, "generate", _generate, "a labelled set of new people, drawn by the profile's IDiff-Face")
    sets.add_argument("kind", help="of contexts: uniform, matched, plda, two_stage or authentic")
    sets.add_argument("--identities", type=int, metavar="N", help="people; default: the profile's generation section")
    sets.add_argument("--samples", type=int, metavar="K", help="images of each")
    sets.add_argument("--guidance", type=float, metavar="S", help="1: the conditional model, as published")
    sets.add_argument("--cpd", type=float, metavar="P", help="of the network")
    sets.add_argument("--variant", help="another network: a name in idiff_face_variants")
    _shard_option(sets, "draw")
    _profile_option(sets)
    execute = _command(commands, "execute", _execute, "run one notebook into figures/<profile>/notebooks")
    execute.add_argument("notebook", type=Path)
    _profile_option(execute)
    faces = _command(commands, "import-faces", _import_faces, "photographs on disk as a FaceSet folder, for a profile")
    faces.add_argument("kind", choices=KINDS, help="folders: one a person; verification: InsightFace's .bin")
    faces.add_argument("source", type=Path, help="a folder; for recordio, verification a file; for webdataset either")
    faces.add_argument("out", type=Path, help="the folder to write; an interrupted import goes on there")
    faces.add_argument("--size", type=int, default=128, help="of the faces, in pixels; default: 128")
    faces.add_argument(
        "--geometry", choices=("detect", "whole", "insightface"), help="folders, ffhq, webdataset: where the face is"
    )
    faces.add_argument(
        "--detector", type=Path, metavar="FILE", help="InsightFace's SCRFD or RetinaFace (.onnx); default: dlib's"
    )
    faces.add_argument("--split", choices=("train", "val", "test"), help="celeba: by default all")
    faces.add_argument(
        "--broken", choices=("refuse", "skip"), default="refuse", help="what becomes of files that cannot be read"
    )
    _shard_option(faces, "read")
    faces.add_argument("--grey", choices=("refuse", "repeat"), default="refuse", help="what becomes of grey images")
    inspect = _command(commands, "inspect", _inspect, "describe a FaceSet folder: images, identities, size, columns")
    inspect.add_argument("folder", type=Path)
    moved = _command(commands, "align", _align, "a FaceSet folder brought into the template, and what could not be")
    moved.add_argument("folder", type=Path)
    moved.add_argument("out", type=Path, help="the folder to write; an interrupted run goes on there")
    moved.add_argument(
        "--detector", type=Path, metavar="FILE", help="InsightFace's SCRFD or RetinaFace (.onnx); default: dlib's"
    )
    moved.add_argument(
        "--tolerance",
        type=float,
        metavar="PIXELS",
        help="that landmarks may be off, on average; default: 0.04 of an image's side",
    )
    moved.add_argument(
        "--on-failure",
        choices=("drop_image", "drop_identity", "keep"),
        default="drop_image",
        help="what becomes of those",
    )
    moved.add_argument(
        "--identities", type=int, metavar="N", help="the first N people that are left; the others are spare"
    )
    _shard_option(moved, "align")
    told = _command(commands, "annotate", _annotate, "a FaceSet folder with ages and poses, by models of yours")
    told.add_argument("folder", type=Path)
    told.add_argument("out", type=Path, help="a new folder")
    told.add_argument("--age", type=Path, metavar="FILE", help="InsightFace's genderage.onnx: age, Male")
    told.add_argument("--pose", type=Path, metavar="FILE", help="InsightFace's 1k3d68.onnx: yaw, pitch, roll")
    embedded = _command(commands, "embed", _embed, "a FaceSet folder's embeddings, embeddings.npy beside its table")
    embedded.add_argument("folder", type=Path)
    embedded.add_argument("out", type=Path, help="the folder to write; an interrupted run goes on there")
    embedded.add_argument(
        "--recogniser", default="reference", metavar="R", help="as for `evaluate`; default: reference"
    )
    embedded.add_argument("--plain", action="store_true", help="without the mirror image")
    _shard_option(embedded, "embed")
    _profile_option(embedded)
    export = _command(commands, "export", _export, "a FaceSet folder as files that other people's code reads")
    export.add_argument("folder", type=Path)
    export.add_argument("out", type=Path, help="a new folder; for verification a new .bin file")
    export.add_argument("--format", choices=("imagefolder", "recordio", "webdataset", "verification"), required=True)
    export.add_argument("--pairs", type=int, default=6000, metavar="P", help="of verification; default: 6000, as LFW")
    export.add_argument("--seed", type=int, default=0, help="of these pairs; default: 0")
    search = _command(commands, "search", _search, "whom of the rendered gallery a description fits best (DiFace)")
    search.add_argument("description", help="in words, such as 'a young woman with red hair and glasses'")
    search.add_argument("--top", type=int, default=10, metavar="K", help="how many to list; default: 10")
    search.add_argument("--size", type=int, metavar="N", help="fill the gallery up to N with vectors that are no faces")
    search.add_argument("--sheet", type=Path, metavar="PICTURE", help="draw them with their scores: .png, .svg or .pdf")
    _profile_option(search)
    drawn = _command(commands, "invert", _invert, "draw a face from what dlib says of a photograph (ID3PM)", True)
    drawn.add_argument("photograph", type=Path, help="of one person")
    drawn.add_argument("--samples", type=int, default=8, metavar="K", help="how many to draw; default: 8")
    drawn.add_argument("--guidance", type=float, metavar="S", help="1: the conditional model; default: the profile's")
    walk = _command(commands, "walk", _walk, "the same, walked along a direction of dlib's space", True)
    walk.add_argument("photograph", type=Path, help="of one person")
    walk.add_argument("--direction", required=True, metavar="NAME", help="age, Male, Full_Beard, ...: notebook 09")
    for command in (drawn, walk):
        command.add_argument("--seed", type=int, default=0, help="of the noise; default: 0")
        command.add_argument("--sheet", type=Path, default=Path("sheet.png"), metavar="PICTURE", help="what to write")
        _profile_option(command)
    tested = _command(commands, "evaluate", _evaluate, "a recogniser on LFW's protocol: accuracy in ten folds")
    tested.add_argument("recogniser", help="dlib, reference, judge, or a file: .safetensors, .pth or .onnx")
    tested.add_argument("sets", nargs="+", type=Path, metavar="SET", help="lfw.bin, cfp_fp.bin, ... of InsightFace")
    tested.add_argument("--plain", action="store_true", help="without the mirror image")
    tested.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    _profile_option(tested)
    rows = _command(commands, "benchmark", _benchmark, "train recognisers from nothing on sets, test them: a table")
    rows.add_argument(
        "rows",
        nargs="+",
        metavar="ROW",
        help="of notebook 10, or such as uniform.cpd25.5000x16.flip; 5000+25x16: aligned, 25 people to spare",
    )
    rows.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="default: the profile's")
    rows.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    _profile_option(rows)
    words = _command(commands, "diface", _diface, "DiFace and its rivals on a profile's described people: a table")
    words.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    _profile_option(words)
    weights = _command(commands, "import-weights", _import_weights, "published weights as our file")
    weights.add_argument("files", nargs="+", type=Path, metavar="FILE", help="two for an encoder and its decoder")
    weights.add_argument(
        "out", type=Path, metavar="OUT", help="what to write; .safetensors is added where it is missing"
    )
    weights.add_argument(
        "--kind", choices=("unet", "vq", "iresnet"), required=True, help="denoiser, autoencoder or recogniser"
    )
    weights.add_argument("--ema", action="store_true", help="the EMA copy, of a file that holds both")
    weights.add_argument("--cpd", type=float, default=0.25, help="unet: dropout in training, which weights do not tell")
    ours = _command(commands, "export-weights", _export_weights, "our weights as other people's code reads them")
    ours.add_argument("file", type=Path, help="a .safetensors of ours: a recogniser, an IDiff-Face U-Net, a VQ-f4")
    ours.add_argument("out", type=Path, help="a new file, or for diffusers a new folder")
    ours.add_argument(
        "--format",
        choices=("official", "onnx", "diffusers"),
        required=True,
        help="official: one .safetensors under the published names",
    )
    both = _command(commands, "compare", _compare, "every number of two result folders against each other")
    both.add_argument("a", type=Path, help="figures/<profile>, its results folder, or one of its .json")
    both.add_argument("b", type=Path)
    both.add_argument("--rtol", type=float, default=1e-3, help="relative tolerance; default: 1e-3")
    verdict = _command(
        commands, "verdict", _verdict, "this profile's numbers against those that came with the checkout"
    )
    verdict.add_argument("--keep", action="store_true", help="before notebooks run: set the numbers that came aside")
    _profile_option(verdict)
    _command(commands, "readme", _readme, "copy the laptop profile's headline numbers into README.md")
    clean = _command(commands, "clean-cache", _clean_cache, "delete artefacts that no profile asks for any more")
    clean.add_argument("--all", action="store_true", help="delete the whole cache")
    clean.add_argument("--yes", action="store_true", help="without asking")
    return parser


def _command(commands: Any, name: str, run: Any, text: str, warns: bool = False) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=RESPONSIBLE if warns else None)
    parser.set_defaults(run=run)
    return parser


def _shard_option(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument(
        "--shard", type=_share, metavar="I/N", help=f"{verb} every N-th part, one of N jobs; then once without, to join"
    )


def _profile_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help=f"default: {profiles.VARIABLE} where it is set, else laptop")


def _named_profile(options: argparse.Namespace) -> str:
    """What the user asked for, as a name or an absolute path (kernels run in another folder)."""
    name = options.profile or os.environ.get(profiles.VARIABLE) or "laptop"
    return name if name in profiles.names() else str(Path(name).absolute())


def _chosen_profile(options: argparse.Namespace) -> Profile:
    named = _named_profile(options)
    found = profiles.load(named)
    if named not in profiles.names():
        _remember(named)
    return found


def _remember(path: str) -> None:
    """Profiles by path: `clean-cache` must know them, or it takes what they made for stale."""
    memo, known = artifacts.cache_root() / KNOWN, _known_profiles()
    if path not in known:
        with contextlib.suppress(OSError), files.replacing(memo) as temporary:  # a read-only cache is not cleaned
            temporary.write_text("".join(f"{line}\n" for line in [*known, path]), encoding="utf-8")


def _known_profiles() -> list[str]:
    memo = artifacts.cache_root() / KNOWN
    return memo.read_text(encoding="utf-8").splitlines() if memo.is_file() else []


# ------------------------------------------------------------------------------------------------------ commands


def _doctor(_: argparse.Namespace) -> int:
    missing = [name for name in VERSIONS if not _print_version(name)]
    import onnxruntime
    import torch

    from facetransport.companion import experiments

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU (no CUDA device)"
    print(f"python       {sys.version.split()[0]}\nfacetransport {version.code_version()}")
    print(f"device       {device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print(f"onnx         {', '.join(onnxruntime.get_available_providers())}")
    root = artifacts.cache_root()
    print(f"cache        {root} ({_mib(root)} MiB)")
    print("weights shipped for the laptop profile:")
    damaged = [r.stage for r in experiments.network_recipes(profiles.load("laptop")) if not _print_weights(r)]
    for name in missing:
        print(f"{name} is not installed: pip install -r requirements.lock", file=sys.stderr)
    return 1 if missing or damaged else 0


def _print_version(name: str) -> bool:
    try:
        print(f"{name:12} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
        return False
    return True


def _print_weights(recipe: Recipe) -> bool:
    """Whether the shipped weights of ``recipe`` are undamaged; absent ones are fine, they are trained when needed."""
    try:
        found = _shipped_only().find(recipe)
    except artifacts.CorruptArtifact as error:
        print(f"  {recipe.stage:46} DAMAGED: {error}")
        return False
    others = sorted(p.name for p in (artifacts.WEIGHTS / recipe.stage).glob("*") if p.is_dir())
    absent = f"for another recipe ({', '.join(others)})" if others else "not shipped"
    print(f"  {recipe.stage:46} {f'present, {_mib(found)} MiB' if found else f'{absent}: trained when first needed'}")
    return True


def _shipped_only() -> Store:
    store = artifacts.default_store()
    return Store(store.root / "none", store.shipped)


def _profiles(options: argparse.Namespace) -> int:
    if not options.name:
        print("\n".join(profiles.names()))
    else:
        print(json.dumps(profiles.as_config(profiles.load(options.name)), indent=2))
    return 0


def _status(options: argparse.Namespace) -> int:
    from facetransport.companion import experiments

    store = artifacts.default_store()
    for recipe in experiments.recipes(_chosen_profile(options)):
        print(f"{recipe.stage:46} {recipe.key[:16]}  {store.status(recipe):8}  {recipe.label}".rstrip())
    return 0


def _train(options: argparse.Namespace) -> int:
    """All processes of a run train; the main one prints and ships."""
    from facetransport.companion import experiments
    from facetransport.companion.experiments import given

    main = not devices.several() or devices.processes().is_main_process
    shipped = None if options.missing else ()  # from nothing: what is shipped does not count
    store = Store(artifacts.cache_root(), shipped)
    if options.dry_run:
        return _dry_run(options, store)
    given.require(_chosen_profile(options))
    for recipe in _chosen(experiments.trained_recipes(_chosen_profile(options)), options.only):
        if options.retrain and main:
            shutil.rmtree(store.folder(recipe), ignore_errors=True)
        if main:
            print(f"{recipe.stage:46} {store.status(recipe):8}  {recipe.label}".rstrip(), flush=True)
        folder = store.get(recipe)
        if main:
            print(f"{recipe.stage:46} {artifacts.ship(recipe, store) if options.ship else folder}", flush=True)
    if options.ship and main:
        _delete(_stale(artifacts.WEIGHTS), artifacts.WEIGHTS)
    return 0


def _dry_run(options: argparse.Namespace, store: Store) -> int:
    from facetransport.companion import experiments, plan

    profile = _chosen_profile(options)
    for line in plan.lines(profile, _chosen(experiments.trained_recipes(profile), options.only), store.status):
        print(line)
    return 0


def _generate(options: argparse.Namespace) -> int:
    """Make the set, or go on where a kill stopped it; say where it is."""
    from facetransport.companion.experiments import idiff_face

    asked = {n: getattr(options, n) for n in ("identities", "samples", "guidance", "cpd", "variant")}
    recipe = idiff_face.dataset_recipe(_chosen_profile(options), options.kind, **asked, share=options.shard)
    store = artifacts.default_store()
    if options.shard and not store.has(recipe):
        print(f"{store.part(recipe)}: shard {options.shard[0] + 1} of {options.shard[1]} is done")
    else:
        print(store.get(recipe))
    return 0


def _share(text: str) -> devices.Share:
    """I/N, counted from 1 as people do, is (I - 1, N)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 2/8, got {text!r}")
    return int(found[1]) - 1, int(found[2])


def _chosen(candidates: list[Recipe], stage: str | None) -> list[Recipe]:
    chosen = [r for r in candidates if stage in (None, r.stage)]
    if not chosen:
        raise ValueError(
            f"--only: expected one of {', '.join(dict.fromkeys(r.stage for r in candidates))}; got {stage!r}"
        )
    return chosen


def _import_faces(options: argparse.Namespace) -> int:
    """KIND SOURCE OUT: write a FaceSet, list the photographs without a face in OUT/failures.json, say what was made."""
    from facetransport.data import imagefolder, photographs

    if options.shard:
        photographs.to_shards(_collection(options), options.out, options.size, options.shard, broken=options.broken)
        print(f"read         a share of {options.out}; once all jobs have ended, run the command without --shard")
        return 0
    faces, lost = photographs.to_faceset(_collection(options), options.out, options.size, broken=options.broken)
    files.write_json(options.out / "failures.json", lost)
    print(f"written      {options.out}")
    print(f"left out     {len(lost)} without a face or broken, listed in failures.json")
    if options.kind in ("folders", "ffhq"):
        others = imagefolder.passed_over(options.source)
        print(f"not read     {', '.join(f'{n} {suffix}' for suffix, n in others.items()) or 'nothing'}")
    return _inspect(argparse.Namespace(folder=options.out))


def _collection(options: argparse.Namespace) -> Any:
    from facetransport.data import celeba, imagefolder, recordio, verification_bin, webdataset

    readers: dict[str, Any] = {
        "folders": imagefolder.people,
        "ffhq": imagefolder.ffhq,
        "celeba": celeba.celeba,
        "recordio": recordio.recordio,
        "verification": verification_bin.verification_bin,
        "webdataset": webdataset.webdataset,
    }
    given = {name: getattr(options, name) for name in ("geometry", "split") if getattr(options, name) is not None}
    geometries = dict.fromkeys(("folders", "ffhq", "webdataset"), {"geometry"})
    takes = (geometries | {"celeba": {"split"}}).get(options.kind, set())
    if set(given) - takes:
        raise ValueError(f"--{(set(given) - takes).pop()}: not for {options.kind}; leave it out")
    found = readers[options.kind](options.source, grey=options.grey, **given)
    if options.detector is None:
        return found
    if found.geometry != "detect":
        raise ValueError(
            f"--detector: {options.kind} is not searched for faces; leave it out, or add --geometry detect"
        )
    return replace(found, detector=_detector(options.detector))


def _detector(file: Path | None) -> Any:
    """In sets of aligned faces dlib's needs a border; in photographs it is the collection's own."""
    from facetransport.data import detection

    return detection.onnx_detector(file) if file else detection.dlib_detector()


def _align(options: argparse.Namespace) -> int:
    """FOLDER OUT: write a FaceSet, list in OUT/failures.csv what is not in the template, say how many."""
    from facetransport.data.aligning import TOLERANCE, align_into
    from facetransport.data.faceset import FaceSet

    side = FaceSet.load(options.folder).images.shape[1]
    done = align_into(
        options.out,
        options.folder,
        _detector(options.detector),
        TOLERANCE * side if options.tolerance is None else options.tolerance,
        options.on_failure,
        options.identities,
        share=options.shard or devices.WHOLE,
    )
    if done is None:
        print(f"aligned      a share of {options.out}; once all jobs have ended, run the command without --shard")
        return 0
    with files.replacing(options.out / "failures.csv") as temporary:
        done[1].to_csv(temporary, index=False)
    print(f"written      {options.out}\nnot aligned  {len(done[1])}, listed in failures.csv")
    return _inspect(argparse.Namespace(folder=options.out))


def _annotate(options: argparse.Namespace) -> int:
    from facetransport.data import annotation

    asked = ((annotation.age_by, options.age), (annotation.pose_by, options.pose))
    looks = [make(file) for make, file in asked if file]
    if not looks:
        raise ValueError("expected --age FILE, --pose FILE or both: models of InsightFace's packs, by your path")
    annotation.annotate_into(options.out, options.folder, looks)
    print(f"written      {options.out}")
    return _inspect(argparse.Namespace(folder=options.out))


def _embed(options: argparse.Namespace) -> int:
    from facetransport.companion import evaluating
    from facetransport.recognition.embedded import embed_into

    named, profile = options.recogniser, _chosen_profile(options)
    recogniser = evaluating.open_recogniser(named, profile, artifacts.default_store(), not options.plain)
    made_by = files.file_digest(Path(named)) if Path(named).is_file() else profile.name
    made_by += " plain" if options.plain else ""
    found = embed_into(options.out, options.folder, recogniser, made_by, options.shard or devices.WHOLE)
    if found is None:
        print(f"embedded     a share of {options.out}; once all jobs have ended, run the command without --shard")
    else:
        print(f"written      {options.out}: {found.shape[0]} embeddings of {found.shape[1]} numbers, {recogniser.name}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from facetransport.data.faceset import FaceSet

    faces = FaceSet.load(options.folder)
    views = faces.table["identity"].value_counts()
    print(f"images       {len(faces)}, {faces.images.shape[1]} x {faces.images.shape[2]} pixels, RGB")
    print(f"identities   {len(views)}, {views.min()} to {views.max()} images each")
    print(f"columns      {', '.join(faces.table.columns)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from facetransport.data import exporting
    from facetransport.data.faceset import FaceSet

    writers = exporting.FORMATS | {
        "verification": partial(exporting.verification, pairs=options.pairs, seed=options.seed)
    }
    print(f"written      {writers[options.format](FaceSet.load(options.folder), options.out)}")
    return 0


def _search(options: argparse.Namespace) -> int:
    """Say how the description was read, then list the best, one a line: rank, score, person, which statements hold."""
    from facetransport.evaluation import search
    from facetransport.world.clauses import plain

    plain(options.description)  # before anything is loaded: it may be empty
    from facetransport.companion.search import finder as open_gallery

    finder = open_gallery(_chosen_profile(options), artifacts.default_store(), options.size)
    understood, found = finder.find(options.description, options.top)
    print(f"read as      {understood}")
    print(f"gallery      {len(finder.faces):,} people, {len(finder) - len(finder.faces):,} distractors")
    print(f"looked at by {finder.method}")
    for row in found.itertuples():
        person = "-" if row.person == search.DISTRACTOR else str(row.person)
        print(f"{row.rank:4}  {row.score:.4f}  {person:>9}  {row.holds}  [{row.known}]")
    if options.sheet:
        _draw(options.sheet, finder.pictures(found), search.labels(found), options.description)
    return 0


def _draw(path: Path, pictures: Any, labels: list[str], title: str) -> None:
    """A sheet of pictures, one a row, each beside its label."""
    from facetransport.companion import plots

    with files.replacing(path) as temporary:
        plots.identity_grid(pictures, 1, labels, title).savefig(temporary)
    print(f"written      {path}")


def _invert(options: argparse.Namespace) -> int:
    from facetransport.companion import inversion

    settings, store = _chosen_profile(options), artifacts.default_store()
    face, drawn = inversion.inverted(
        settings, store, options.photograph, options.samples, options.guidance, options.seed
    )
    return _sheet(options, face, drawn, [f"sample {k}" for k in range(len(drawn))])


def _walk(options: argparse.Namespace) -> int:
    from facetransport.companion import inversion

    settings, store = _chosen_profile(options), artifacts.default_store()
    face, drawn = inversion.walked(settings, store, options.photograph, options.direction, seed=options.seed)
    return _sheet(options, face, drawn, [f"{step:+g}" if step else "0" for step in inversion.STEPS])


def _sheet(options: argparse.Namespace, face: Any, drawn: Any, heads: Sequence[str]) -> int:
    from facetransport.companion.inversion import sheet

    with files.replacing(options.sheet) as temporary:
        sheet(face, drawn, heads).savefig(temporary)
    print(f"written      {options.sheet}\n{RESPONSIBLE}")
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    """All processes of a run train; the main one prints."""
    from facetransport.companion import evaluating

    table = evaluating.benchmark(_chosen_profile(options), artifacts.default_store(), options.rows, options.seeds)
    return _show(table, options.json)


def _diface(options: argparse.Namespace) -> int:
    """All processes of a run train; the main one prints."""
    from facetransport.companion import evaluating

    return _show(evaluating.diface(_chosen_profile(options), artifacts.default_store()), options.json)


def _show(table: pd.DataFrame, out: Path | None) -> int:
    """Print a table as Markdown and write it as JSON, once in a run of several processes."""
    from facetransport.companion import results

    if devices.share()[0] == 0:
        print(results.markdown(table))
        if out:
            files.write_json(out, table.to_dict("records"))
            print(f"written      {out}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from facetransport.companion import evaluating, results

    recogniser = evaluating.open_recogniser(
        options.recogniser, _chosen_profile(options), artifacts.default_store(), not options.plain
    )
    table = evaluating.evaluate(recogniser, options.sets)
    print(results.markdown(table))
    if options.json:
        files.write_json(options.json, {"recogniser": recogniser.name, "sets": table.to_dict("records")})
        print(f"written      {options.json}")
    return 0


def _import_weights(options: argparse.Namespace) -> int:
    """FILE OUT --kind unet|vq|iresnet [--ema]: write OUT.safetensors, say what FILE was taken for."""
    from facetransport.diffusion import official

    if options.kind == "iresnet":
        return _import_iresnet(options.files[0], options.out.with_suffix(".safetensors"))
    if options.kind == "vq":
        done = official.import_vq(options.files, options.out, options.ema)
    elif len(options.files) == 1:
        done = official.import_unet(options.files[0], options.out, options.ema, options.cpd)
    else:
        raise ValueError(f"--kind unet: expected one FILE, got {len(options.files)}; only vq comes in two")
    print(f"kind         {done.kind}, {done.parameters:,} parameters, names under {done.prefix!r}")
    print(f"config       {', '.join(f'{k} {v}' for k, v in done.config.items() if k != 'kind')}")
    print(f"written      {done.path}")
    return 0


def _export_weights(options: argparse.Namespace) -> int:
    from facetransport.companion.export_weights import export

    print(f"written      {export(options.file, options.out, options.format)}")
    return 0


def _import_iresnet(file: Path, out: Path) -> int:
    """InsightFace's and ElasticFace's IResNets: what a profile's ``weights.reference`` can name."""
    from facetransport.checkpoints import read_checkpoint
    from facetransport.recognition.iresnet import from_state_dict
    from facetransport.recognition.training import save_network

    model = from_state_dict(read_checkpoint(file), str(file))
    save_network(out, model, source=file.name, digest=files.file_digest(file))
    count = sum(p.numel() for p in model.parameters())
    print(f"kind         iresnet of layers {model.config.layers}, {count:,} parameters, {model.config.dim} dimensions")
    print(f"written      {out}")
    return 0


# ----------------------------------------------------------------------------------------------------- notebooks


def _compare(options: argparse.Namespace) -> int:
    from facetransport.companion.compare import compare

    compared = compare(options.a, options.b, options.rtol)
    print(compared.report())
    return 0 if compared.reproduced else 1


def _verdict(options: argparse.Namespace) -> int:
    """What is committed may be overwritten by the run that is to be judged, so it is set aside before the first one."""
    from facetransport.companion.compare import compare

    name = _chosen_profile(options).name
    came, now = artifacts.cache_root() / "committed" / name, figures_root() / name
    if options.keep or (now.parents[1] / ".git").exists():  # git knows at any time what was committed
        _set_aside(now / "results", came)
    if options.keep:
        return 0
    if not any(came.glob("*.json")):
        print(f"figures/{name}: no numbers came with this checkout, nothing to compare with")
    else:
        print(f"figures/{name} against the numbers that came with this checkout:")
        print(compare(came, now).report())
    return 0  # a difference is for people to judge: `facetransport compare` fails on one


def _set_aside(results: Path, folder: Path) -> None:
    """The committed numbers: HEAD's where there is a git, else those found before anything was run."""
    root = results.parents[2]
    listed = _git(root, "ls-tree", "--name-only", "HEAD", f"{results.relative_to(root).as_posix()}/")
    if listed is None and folder.is_dir():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in results.glob("*.json") if listed is None else map(Path, listed.split()):
        text = path.read_text(encoding="utf-8") if listed is None else _git(root, "show", f"HEAD:{path.as_posix()}")
        (folder / path.name).write_text(text or "[]", encoding="utf-8")


def _git(root: Path, *arguments: str) -> str | None:
    return version.git(root, *arguments) if (root / ".git").exists() else None


def _readme(_: argparse.Namespace) -> int:
    path = figures_root().parent / "README.md"
    with files.replacing(path) as temporary:
        temporary.write_text(with_headlines(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def with_headlines(readme: str) -> str:
    """The README with the table between its two marks taken from figures/laptop/headlines.md."""
    table = (figures_root() / "laptop" / "headlines.md").read_text(encoding="utf-8").strip()
    return re.sub(
        r"(<!-- headlines:[^\n]*-->\n).*?(<!-- end of headlines -->)", rf"\g<1>{table}\n\g<2>", readme, flags=re.S
    )


def _execute(options: argparse.Namespace) -> int:
    if not options.notebook.is_file():
        raise FileNotFoundError(f"{options.notebook}: no such notebook; run from the repository, where notebooks/ is")
    folder = _chosen_profile(options).name
    return execute(options.notebook, _named_profile(options), folder)


def execute(notebook: Path, profile: str, folder: str) -> int:
    """Run a notebook through papermill; the copy takes its place in ``figures/<folder>`` only when all cells ran."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type] # jsonschema's IRIs: a second, none are here
    import nbformat
    from papermill.exceptions import PapermillExecutionError

    os.environ.update({profiles.VARIABLE: profile, "TQDM_DISABLE": "1", "JUPYTER_PREFER_ENV_PATH": "1"})
    running = artifacts.cache_root() / "executing" / folder / notebook.name
    try:
        _run_cells(notebook, running, profile)
    except PapermillExecutionError as error:
        print(f"{error}\n{notebook}: a cell failed; what ran until then is in {running}", file=sys.stderr)
        return 1
    copy, root = nbformat.read(running, as_version=4), figures_root() / folder
    files.write_json(root / "speed" / "cells" / f"{notebook.stem}.json", _durations(copy))
    with files.replacing(root / "notebooks" / notebook.name) as temporary:
        nbformat.write(_tidy(copy), temporary)
    running.unlink()
    return 0


def _run_cells(notebook: Path, running: Path, profile: str) -> None:
    import papermill

    with closing(Turns(running.parent)) as turns:
        papermill.execute_notebook(
            notebook,
            running,
            {"profile": profile},
            kernel_name="python3",
            cwd=notebook.parent,
            progress_bar=sys.stderr.isatty(),
            on_cell_execute=turns.start,
            on_cell_executed=turns.end,
        )


def _durations(notebook: Any) -> dict[str, float]:
    """Seconds of each cell, the slowest first: what to thin where a notebook takes too long."""
    took = {cell.id: cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in notebook.cells}
    return dict(sorted(took.items(), key=lambda item: -item[1]))


def _tidy(notebook: Any) -> Any:
    """Drop timings, stderr (warnings name this machine's folders), widgets (dead in a copy, numbered anew each time)
    and what cells tagged ``speed`` print: a copy changes only when what it shows does."""
    import nbformat

    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k == "kernelspec"}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
        if cell.cell_type == "code":
            cell.outputs = _joined([_lighter(output) for output in cell.outputs if not _is_passing(output)])
        tags = cell.metadata.get("tags", ())
        if INJECTED_TAG in tags:
            cell.id = INJECTED_TAG  # papermill draws a new one in each run
        if SPEED_TAG in tags:
            cell.outputs = [nbformat.v4.new_output("stream", text="(of this machine: see figures/<profile>/speed)\n")]
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Printed text in one piece: where it was cut depends on how fast it came."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _lighter(output: Any) -> Any:
    """Charts in 256 colours, faces as JPEG; in full they are beside the copy, where `results.Run.figure` saved them."""
    data = output.get("data", {})
    if "image/png" in data:
        png = b64decode(data.pop("image/png"))
        kind, picture = ("jpeg", jpeg(png)) if is_rich(png) else ("png", lighter(png))
        data[f"image/{kind}"] = b64encode(picture).decode()
    return output


def _is_passing(output: Any) -> bool:
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


# --------------------------------------------------------------------------------------------------------- cache


def _clean_cache(options: argparse.Namespace) -> int:
    root = artifacts.cache_root()
    before, doomed = _mib(root), _ours(artifacts.cache_root()) if options.all else _stale(artifacts.cache_root())
    for path in doomed:
        print(f"to delete    {path} ({_mib(path)} MiB)")
    if doomed and not options.yes and not _agreed(f"delete these {len(doomed)}? What they took hours to make is lost"):
        print("nothing deleted; --yes deletes without asking")
        return 1
    _delete(doomed, root)
    print(f"{root}: {before} MiB before, {_mib(root)} MiB now")
    return 0


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _ours(root: Path) -> list[Path]:
    """What this package put into ``root``, and nothing else: the folder is the user's to name.

    Artefacts by their names and manifests, and what only the Makefile and `execute` write: stamps of notebooks.
    """
    stamps = [path for path in root.glob("stamps/*/*.stamp")]
    running = [path for path in root.glob("executing/*/*") if path.suffix in (".ipynb", ".lock")]
    named = [path for path in root.glob("*/*") if ARTEFACT.fullmatch(path.name)]
    made = [path for path in named if path.suffix or (path / artifacts.MANIFEST).is_file()]
    notes = [path for path in (root / ".verified", root / KNOWN) if path.exists()]
    return [*made, *stamps, *running, *notes]


def _stale(root: Path) -> list[Path]:
    """Artefacts of known stages whose key no known profile has, what was made from them, and damaged ones."""
    from facetransport.companion import experiments

    here = [name for name in _known_profiles() if Path(name).is_file()]
    current = _with_upstream(r for name in (*profiles.names(), *here) for r in experiments.recipes(profiles.load(name)))
    stages, keys = {r.stage for r in current}, {r.key for r in current}
    folders = sorted(p for p in root.glob("*/*") if p.is_dir() and ARTEFACT.fullmatch(p.name))
    return [folder for folder in folders if folder.suffix == ".corrupt" or _is_stale(folder, stages, keys)]


def _delete(doomed: Sequence[Path], root: Path) -> None:
    """And the folders of this package that are empty then."""
    for path in doomed:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for folder in sorted(
        {parent for path in doomed for parent in path.parents if root in parent.parents}, reverse=True
    ):
        if not any(folder.iterdir()):
            folder.rmdir()


def _with_upstream(recipes: Iterable[Recipe]) -> list[Recipe]:
    return [r for recipe in recipes for r in (recipe, *_with_upstream(recipe.upstream))]


def _is_stale(folder: Path, stages: set[str], keys: set[str]) -> bool:
    try:
        manifest = json.loads((folder / artifacts.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    made_of = {manifest["stage"]: manifest["key"], **manifest["upstream"]}
    return any(stage in stages and key not in keys for stage, key in made_of.items())


def _mib(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) >> 20 if folder.is_dir() else 0
