"""What a profile makes of words: the network that finds statements, and what it read of the describer's texts."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

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
    ClauseReader,
    NetworkReader,
    Reader,
    StatementReader,
    ThesaurusReader,
    statement_loss,
)
from facetransport.evaluation.described import captions_of, text_encoder
from facetransport.tensors import read_model, save_model, seeded
from facetransport.training import TrainingConfig
from facetransport.world import captions, grammar, thesaurus

READINGS = "readings.safetensors"
ROLES = ("val", "gallery")
Kind = Literal["thesaurus", "network", "clauses"]
READERS: tuple[Kind, ...] = ("thesaurus", "network", "clauses")  # the first is used, the others are compared with it


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
        return {"sure": SURE, "alike": ALIKE, "thesaurus": _digest(thesaurus.FILE)}
    return {"enough": ENOUGH} if kind == "clauses" else {}


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()[:16]


def load_readings(profile: Profile, store: Store, words: str, kind: Kind = READERS[0]) -> dict[str, list[np.ndarray]]:
    """By role, what was understood of each set of texts, int8 (N, A) each; what was said is `captions_of`."""
    tensors = read_model(store.get(readings_recipe(profile, words, kind)) / READINGS)[0]
    names = len(grammar.known_names())
    return {role: [_unpacked(part, names) for part in packed.numpy()] for role, packed in tensors.items()}


def sentences_recipe(profile: Profile, kind: Kind) -> Recipe:
    """What a reader understands of the sentences about ORL's 40 people."""
    config = {"reader": kind, "grammar": grammar.digest(), "sentences": _digest(orl.SENTENCES)} | _reads_by(kind)
    upstream = (population_recipe if kind == "clauses" else reader_recipe)(profile)
    return Recipe("diface.sentences", config, partial(_make_sentences, kind), upstream=(upstream,), label=kind)


def load_sentences(profile: Profile, store: Store, kind: Kind) -> np.ndarray:
    """int8 (40, A): what was understood of the sentences about ORL's people."""
    packed = read_model(store.get(sentences_recipe(profile, kind)) / READINGS)[0]["orl"].numpy()
    return _unpacked(packed, len(grammar.known_names()))


def texts_of(said: np.ndarray, names: tuple[str, ...], words: str, seed: int) -> list[str]:
    """The texts that say this, as they are read."""
    return grammar.describe(said, names, np.random.default_rng((seed, 2)), words)


def _make_readings(
    section: DiFace, words: str, sets: dict[str, int], kind: Kind, folder: Path, upstream: tuple[Path, ...]
) -> None:
    everyone = [read_faces(path) for path in upstream[:2]]
    names = everyone[0].names
    reader = _reader(kind, read_reader(upstream[2])) if upstream[2:] else ClauseReader.of(names, text_encoder())
    by_role, found = dict(zip(ROLES, everyone, strict=True)), {}
    for role, number in sets.items():
        told = (captions_of(by_role[role], describer_of(section), seed) for seed in range(number))
        read = [reader.read(texts_of(said, names, words, seed)).said for seed, said in enumerate(told)]
        found[role] = torch.from_numpy(np.stack([_packed(said) for said in read]))
    save_model(folder / READINGS, found, names=names)


def _make_sentences(kind: Kind, folder: Path, upstream: tuple[Path, ...]) -> None:
    if kind == "clauses":
        reader: Reader = ClauseReader.of(read_population(upstream[0]).names, text_encoder())
    else:
        reader = _reader(kind, read_reader(upstream[0]))
    said = reader.read(orl.sentences()).said
    save_model(folder / READINGS, {"orl": torch.from_numpy(_packed(said))}, names=reader.names)


def _packed(said: np.ndarray) -> np.ndarray:
    """uint8 (2, N, A / 8): which attributes are said, and which of them to be present."""
    return np.stack([np.packbits(said == symbol, axis=1) for symbol in (captions.ABSENT, captions.PRESENT)])


def _unpacked(packed: np.ndarray, names: int) -> np.ndarray:
    absent, present = (np.unpackbits(part, axis=1, count=names).astype(np.int8) for part in packed)
    return present - (1 - present - absent)
