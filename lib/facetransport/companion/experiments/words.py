"""What a profile makes of words: the network that finds statements, and what it read of the describer's texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments.diface import (
    describer_of,
    faces_recipe,
    load_population,
    population_recipe,
    read_faces,
    read_population,
)
from facetransport.companion.experiments.fitting import MODEL, fit
from facetransport.companion.profiles import DiFace, Profile, Words, as_config
from facetransport.data import orl
from facetransport.devices import device
from facetransport.diffusion.statements import (
    ALIKE,
    ENOUGH,
    SURE,
    TELLING,
    ClauseReader,
    NetworkReader,
    Reader,
    Reading,
    StatementReader,
    ThesaurusReader,
    statement_loss,
)
from facetransport.evaluation.described import captions_of, text_encoder
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig
from facetransport.world import captions, grammar, thesaurus

READINGS = "readings.npz"  # compressed: few statements of many are made
DOUBT = 0.03  # of a probability: what differs less from 0 or 1 counts as that
ROLES = ("val", "gallery")
Kind = Literal["thesaurus", "network", "clauses"]
READERS: tuple[Kind, ...] = ("thesaurus", "network", "clauses")  # the first is used, the others are compared with it
OF_SENTENCES: tuple[Kind, ...] = ("thesaurus", "clauses")  # which read those about ORL's people
# Who reads which words of the describer's: where there is little to look up, the network alone understands the same.
READ = tuple((how, kind) for how in READERS for kind in grammar.KINDS if how != "network" or kind == "held_out_words")


class Heard(NamedTuple):
    """What was understood of texts: said int8 (N, A); stated float32 (N, A, 2), how probable it is that absence,
    presence is said, in hundredths."""

    said: np.ndarray
    stated: np.ndarray


def reader_recipe(profile: Profile) -> Recipe:
    """The network that finds the statements of a text, trained on the grammar's words and templates."""
    config = {name: value for name, value in as_config(profile.words).items() if name != "search"}
    config["grammar"] = grammar.digest()
    make = partial(_make_reader, profile.words)
    return Recipe("diface.reader", config, make, upstream=(population_recipe(profile),), collective=True)


def load_reader(profile: Profile, store: Store, kind: Kind = READERS[0]) -> Reader:
    """What reads descriptions: the trained network that looks up words which training does not hold, the network alone,
    or the rule that looks for the nearest phrase of each clause."""
    if kind == "clauses":
        return ClauseReader.of(load_population(profile, store).names, text_encoder())
    return _reader(kind, read_reader(store.get(reader_recipe(profile))))


def _reader(kind: Kind, network: NetworkReader) -> Reader:
    return ThesaurusReader(network) if kind == "thesaurus" else network


def read_reader(folder: Path) -> NetworkReader:
    """The reader that was written into a folder."""
    tensors, facts = read_model(folder / MODEL)
    network = StatementReader(len(facts["names"]), facts["width"], facts["depth"])
    network.load_state_dict(tensors)
    return NetworkReader(network.eval().requires_grad_(False).to(device()), text_encoder(), tuple(facts["names"]))


def _make_reader(section: Words, folder: Path, upstream: tuple[Path, ...]) -> None:
    people = read_population(upstream[0])
    facts: dict[str, Any] = {"width": section.width, "depth": section.depth}
    with seeded(section.seed):
        network = StatementReader(len(people.names), **facts)
    training = TrainingConfig(
        section.steps,
        section.batch,
        section.lr,
        section.seed,
        ema=0.998,
        warmup=min(100, section.steps // 10),
        decay="cosine",
        weight_decay=0.01,
        bf16=True,
    )
    loss = statement_loss(people.attributes, people.names, text_encoder())
    fit(network, loss, len(people), training, folder, names=people.names, **facts)


# -------------------------------------------------------------------------------------------------------- what was read


def readings_recipe(profile: Profile, words: str, kind: Kind = READERS[0]) -> Recipe:
    """What a reader understands of the describer's texts in these words: of `val` one text a photograph, of `gallery`
    as many as the evaluation has sets of pairs, where the reader is only compared one. The rule, by which nobody
    matches, reads none of `val`.
    """
    section = profile.diface
    config = {"words": words, "reader": kind, "told": as_config(describer_of(section)), "seed": section.seed}
    config["grammar"] = grammar.digest(held=True)
    sets = {"gallery": profile.evaluation.pair_sets if kind == READERS[0] else 1}
    sets |= {"val": 1} if kind != "clauses" else {}
    faces = tuple(faces_recipe(profile, role, section.encoder) for role in ROLES)
    reader = (reader_recipe(profile),) if kind != "clauses" else ()
    make = partial(_make_readings, section, words, sets, kind)
    config |= _reads_by(kind)
    return Recipe(
        "diface.readings", config | {"sets": sets}, make, upstream=(*faces, *reader), label=f"{words}, {kind}"
    )


def _reads_by(kind: Kind) -> dict[str, Any]:
    """What else than its network a reader's answers depend on."""
    if kind == "thesaurus":
        tables = {"thesaurus": _digest(thesaurus.FILE), "moby": _digest(thesaurus.MOBY)}
        return {"sure": SURE, "alike": ALIKE, "telling": TELLING, "doubt": DOUBT} | tables
    return {"doubt": DOUBT} | ({"enough": ENOUGH} if kind == "clauses" else {})


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()[:16]


def load_readings(profile: Profile, store: Store, words: str, kind: Kind = READERS[0]) -> dict[str, list[Heard]]:
    """By role, what was understood of each set of texts; what was said is `captions_of`."""
    with np.load(store.get(readings_recipe(profile, words, kind)) / READINGS) as kept:
        return {role: _unpacked(kept, role) for role in ROLES if role in kept}


def sentences_recipe(profile: Profile, kind: Kind) -> Recipe:
    """What a reader understands of the sentences about ORL's 40 people."""
    config = {"reader": kind, "grammar": grammar.digest(), "sentences": _digest(orl.SENTENCES)} | _reads_by(kind)
    upstream = (population_recipe if kind == "clauses" else reader_recipe)(profile)
    return Recipe("diface.sentences", config, partial(_make_sentences, kind), upstream=(upstream,), label=kind)


def load_sentences(profile: Profile, store: Store, kind: Kind) -> Heard:
    """What was understood of the sentences about ORL's 40 people."""
    with np.load(store.get(sentences_recipe(profile, kind)) / READINGS) as kept:
        return _unpacked(kept, "orl")[0]


def texts_of(said: np.ndarray, names: tuple[str, ...], words: str, seed: int) -> list[str]:
    """The texts that say this, as they are read."""
    return grammar.describe(said, names, np.random.default_rng((seed, 2)), words)


def _make_readings(
    section: DiFace, words: str, sets: dict[str, int], kind: Kind, folder: Path, upstream: tuple[Path, ...]
) -> None:
    everyone = [read_faces(path) for path in upstream[:2]]
    names = everyone[0].names
    reader = _reader(kind, read_reader(upstream[2])) if upstream[2:] else ClauseReader.of(names, text_encoder())
    by_role, found = dict(zip(ROLES, everyone, strict=True)), dict[str, np.ndarray]()
    for role, number in sets.items():
        told = (captions_of(by_role[role], describer_of(section), seed) for seed in range(number))
        texts = [text for seed, said in enumerate(told) for text in texts_of(said, names, words, seed)]
        read = reader.read(texts)  # all sets at once: a clause is looked up once
        found |= _packed(role, list(map(Heard, np.split(read.said, number), np.split(read.stated, number))))
    np.savez_compressed(folder / READINGS, allow_pickle=False, **found)


def _make_sentences(kind: Kind, folder: Path, upstream: tuple[Path, ...]) -> None:
    if kind == "clauses":
        reader: Reader = ClauseReader.of(read_population(upstream[0]).names, text_encoder())
    else:
        reader = _reader(kind, read_reader(upstream[0]))
    np.savez_compressed(folder / READINGS, allow_pickle=False, **_packed("orl", [reader.read(orl.sentences())]))


def _packed(role: str, read: Sequence[Reading | Heard]) -> dict[str, np.ndarray]:
    """uint8. role: (sets, 2, N, A / 8), which attributes are said to be absent, present. Where the reader is in DOUBT,
    text after text: counts (sets, N), of each text; places and values, of the statements and how probable they are."""
    said, stated = np.stack([each.said for each in read]), np.stack([each.stated for each in read])
    certain = said[..., None] == (captions.ABSENT, captions.PRESENT)
    doubts = (np.abs(stated - certain) >= DOUBT).reshape(*said.shape[:2], -1)
    found = {
        role: np.packbits(np.moveaxis(certain, 3, 1), axis=3),
        f"{role}.counts": doubts.sum(2),
        f"{role}.places": np.nonzero(doubts)[2],
        f"{role}.values": np.round(100 * stated.reshape(doubts.shape)[doubts]),
    }
    return {name: array.astype(np.uint8) for name, array in found.items()}


def _unpacked(kept: Mapping[str, np.ndarray], role: str) -> list[Heard]:
    names = len(grammar.known_names())
    certain = np.moveaxis(np.unpackbits(kept[role], axis=3, count=names), 1, 3)  # (sets, N, A, 2)
    stated = np.ascontiguousarray(certain, np.float32)
    counts, places, values = (kept[f"{role}.{part}"] for part in ("counts", "places", "values"))
    flat = stated.reshape(counts.size, -1)
    flat[np.repeat(np.arange(counts.size), counts.ravel()), places] = values / np.float32(100)
    said = np.where(certain.any(3), certain[..., 1], captions.UNSAID).astype(np.int8)
    return [Heard(*each) for each in zip(said, stated, strict=True)]
