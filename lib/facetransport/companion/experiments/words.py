"""What a profile makes of words: the network that finds statements, and what it read of the describer's texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from zipfile import ZIP_LZMA, ZipFile, ZipInfo

import numpy as np
from torch import Tensor, nn

from facetransport.companion.artifacts import Recipe, Store
from facetransport.companion.experiments import given
from facetransport.companion.experiments.diface import (
    describer_of,
    faces_recipe,
    population_recipe,
    read_faces,
    read_population,
)
from facetransport.companion.experiments.fitting import MODEL, fit
from facetransport.companion.profiles import Clausewise, Profile, Words, as_config
from facetransport.data import orl
from facetransport.devices import device
from facetransport.diffusion.clausewise import ClauseNetwork, ClausewiseReader, clausewise_loss
from facetransport.diffusion.statements import (
    ALIKE,
    CLAUSEWISE,
    ENOUGH,
    HINTED,
    NEW_SAID,
    NEW_WORDS,
    TELLING,
    ClauseReader,
    DoubleReader,
    NetworkReader,
    Reader,
    Reading,
    StatementReader,
    ThesaurusReader,
    statement_loss,
    training_texts,
)
from facetransport.diffusion.text import SentenceEncoder
from facetransport.evaluation.described import captions_of, text_encoder
from facetransport.tensors import read_model, seeded
from facetransport.training import TrainingConfig
from facetransport.world import captions, grammar, thesaurus

N = TypeVar("N", bound=nn.Module)
READINGS = "readings.npz"  # compressed: few statements of many are made
DOUBT = 0.05  # of a probability: what differs less from 0 or 1 counts as that
STEP = 0.02  # in which the others are kept
ROLES = ("val", "gallery")
Kind = Literal["thesaurus", "network", "clauses"]
READERS: tuple[Kind, ...] = ("thesaurus", "network", "clauses")  # the first is used, the others are compared with it
OF_SENTENCES: tuple[Kind, ...] = ("thesaurus", "clauses")  # which read those about ORL's people
# Who reads which words of the describer's: where there is little to look up, the network alone understands the same.
READ = tuple((how, kind) for how in READERS for kind in grammar.KINDS if how != "network" or kind == "held_out_words")


class Heard(NamedTuple):
    """What was understood of texts: said int8 (N, A); stated float32 (N, A, 2), how probable it is that absence,
    presence is said, in fiftieths."""

    said: np.ndarray
    stated: np.ndarray


def reader_recipe(profile: Profile) -> Recipe:
    """The network that finds the statements of a text, trained on the grammar's words and templates."""
    config = {name: value for name, value in as_config(profile.words).items() if name not in ("search", "clausewise")}
    config["grammar"] = grammar.digest()
    make = partial(_make_reader, profile.words)
    return Recipe("diface.reader", config, make, upstream=(population_recipe(profile),), collective=True)


def clausewise_recipe(profile: Profile) -> Recipe:
    """The network that finds the statements of each clause, trained on texts of the grammar that are drawn once."""
    section = profile.words.clausewise
    config = as_config(section) | given.text_model(section.text, "words.clausewise.text")
    config |= {"seed": profile.words.seed, "grammar": grammar.digest()}
    make = partial(_make_clausewise, profile.words)
    return Recipe("diface.clausewise", config, make, upstream=(population_recipe(profile),), collective=True)


def networks(profile: Profile) -> tuple[Recipe, ...]:
    """Those of the reader in use."""
    return reader_recipe(profile), clausewise_recipe(profile)


def load_reader(profile: Profile, store: Store, kind: Kind = READERS[0]) -> Reader:
    """What reads descriptions: both networks, which look up words that training does not hold; the network that reads
    texts whole, alone; or the rule that looks for the nearest phrase of each clause."""
    return _read_reader(kind, tuple(map(store.get, _upstream(profile, kind))), profile.words.clausewise)


def _upstream(profile: Profile, kind: Kind) -> tuple[Recipe, ...]:
    """What a reader is made of."""
    if kind == "clauses":
        return (population_recipe(profile),)
    return networks(profile) if kind == "thesaurus" else (reader_recipe(profile),)


def _read_reader(kind: Kind, folders: tuple[Path, ...], section: Clausewise) -> Reader:
    if kind == "clauses":
        return ClauseReader.of(read_population(folders[0]).names, text_encoder())
    whole = _read_network(folders[0])
    return ThesaurusReader(DoubleReader(whole, _read_clausewise(folders[1], section))) if kind == "thesaurus" else whole


def _read_network(folder: Path) -> NetworkReader:
    tensors, facts = read_model(folder / MODEL)
    network = StatementReader(len(facts["names"]), facts["width"], facts["depth"])
    return NetworkReader(_frozen(network, tensors), text_encoder(), tuple(facts["names"]))


def _read_clausewise(folder: Path, section: Clausewise) -> ClausewiseReader:
    tensors, facts = read_model(folder / MODEL)
    sentences = _sentence_encoder(section.text)
    network = ClauseNetwork(len(facts["names"]), facts["width"], sentences.dim)
    return ClausewiseReader(_frozen(network, tensors), sentences)


@cache
def _sentence_encoder(folder: str | None) -> SentenceEncoder:
    return SentenceEncoder(Path(folder), device()) if folder else text_encoder()


def _frozen(network: N, tensors: Mapping[str, Tensor]) -> N:
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False).to(device())


def _make_reader(section: Words, folder: Path, upstream: tuple[Path, ...]) -> None:
    people = read_population(upstream[0])
    facts: dict[str, Any] = {"width": section.width, "depth": section.depth}
    with seeded(section.seed):
        network = StatementReader(len(people.names), **facts)
    training = _training(section, section.seed, ema=0.998, weight_decay=0.01, bf16=True)
    loss = statement_loss(people.attributes, people.names, text_encoder())
    fit(network, loss, len(people), training, folder, names=people.names, **facts)


def _training(section: Words | Clausewise, seed: int, **more: Any) -> TrainingConfig:
    steps = section.steps
    return TrainingConfig(steps, section.batch, section.lr, seed, warmup=min(100, steps // 10), decay="cosine", **more)


def _make_clausewise(words: Words, folder: Path, upstream: tuple[Path, ...]) -> None:
    people, section = read_population(upstream[0]), words.clausewise
    texts, said = training_texts(people.attributes, people.names, section.texts, np.random.default_rng(words.seed))
    sentences = _sentence_encoder(section.text)
    with seeded(words.seed):
        network = ClauseNetwork(len(people.names), section.width, sentences.dim)
    training = _training(section, words.seed, ema=0.99, weight_decay=section.weight_decay)
    loss = clausewise_loss(texts, said, sentences)
    fit(network, loss, len(texts), training, folder, names=people.names, width=section.width)


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
    make = partial(_make_readings, profile, words, sets, kind)
    config |= _reads_by(kind)
    return Recipe(
        "diface.readings",
        config | {"sets": sets},
        make,
        upstream=(*faces, *_upstream(profile, kind)),
        label=f"{words}, {kind}",
    )


def _reads_by(kind: Kind) -> dict[str, Any]:
    """What else than its network a reader's answers depend on."""
    if kind == "thesaurus":
        tables = {"thesaurus": _digest(thesaurus.FILE), "moby": _digest(thesaurus.MOBY)}
        pooled = {"clausewise": CLAUSEWISE, "hinted": HINTED, "new_words": NEW_WORDS, "new_said": NEW_SAID}
        return pooled | {"alike": ALIKE, "telling": TELLING, "doubt": [DOUBT, STEP]} | tables
    return {"doubt": [DOUBT, STEP]} | ({"enough": ENOUGH} if kind == "clauses" else {})


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()[:16]


def load_readings(profile: Profile, store: Store, words: str, kind: Kind = READERS[0]) -> dict[str, list[Heard]]:
    """By role, what was understood of each set of texts; what was said is `captions_of`."""
    with np.load(store.get(readings_recipe(profile, words, kind)) / READINGS) as kept:
        return {role: _unpacked(kept, role) for role in ROLES if role in kept}


def sentences_recipe(profile: Profile, kind: Kind) -> Recipe:
    """What a reader understands of the sentences about ORL's 40 people."""
    config = {"reader": kind, "grammar": grammar.digest(), "sentences": _digest(orl.SENTENCES)} | _reads_by(kind)
    upstream = _upstream(profile, kind)
    return Recipe(
        "diface.sentences",
        config,
        partial(_make_sentences, kind, profile.words.clausewise),
        upstream=upstream,
        label=kind,
    )


def load_sentences(profile: Profile, store: Store, kind: Kind) -> Heard:
    """What was understood of the sentences about ORL's 40 people."""
    with np.load(store.get(sentences_recipe(profile, kind)) / READINGS) as kept:
        return _unpacked(kept, "orl")[0]


def texts_of(said: np.ndarray, names: tuple[str, ...], words: str, seed: int) -> list[str]:
    """The texts that say this, as they are read."""
    return grammar.describe(said, names, np.random.default_rng((seed, 2)), words)


def _make_readings(
    profile: Profile, words: str, sets: dict[str, int], kind: Kind, folder: Path, upstream: tuple[Path, ...]
) -> None:
    everyone = [read_faces(path) for path in upstream[:2]]
    names = everyone[0].names
    reader = _read_reader(kind, upstream[2:], profile.words.clausewise)
    by_role, found = dict(zip(ROLES, everyone, strict=True)), dict[str, np.ndarray]()
    for role, number in sets.items():
        told = (captions_of(by_role[role], describer_of(profile.diface), seed) for seed in range(number))
        texts = [text for seed, said in enumerate(told) for text in texts_of(said, names, words, seed)]
        read = reader.read(texts)  # all sets at once: a clause is looked up once
        found |= _packed(role, list(map(Heard, np.split(read.said, number), np.split(read.stated, number))))
    _write(folder / READINGS, found)


def _make_sentences(kind: Kind, section: Clausewise, folder: Path, upstream: tuple[Path, ...]) -> None:
    reader = _read_reader(kind, upstream, section)
    _write(folder / READINGS, _packed("orl", [reader.read(orl.sentences())]))


def _write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """As numpy's savez_compressed, a tenth smaller; the same bytes whenever it is written."""
    with ZipFile(file, "w", ZIP_LZMA) as archive:
        for name, array in arrays.items():
            written = BytesIO()
            np.lib.format.write_array(written, array, allow_pickle=False)
            archive.writestr(ZipInfo(f"{name}.npy"), written.getvalue(), ZIP_LZMA)


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
        f"{role}.values": np.round(stated.reshape(doubts.shape)[doubts] / STEP),
    }
    return {name: array.astype(np.uint8) for name, array in found.items()}


def _unpacked(kept: Mapping[str, np.ndarray], role: str) -> list[Heard]:
    names = len(grammar.known_names())
    certain = np.moveaxis(np.unpackbits(kept[role], axis=3, count=names), 1, 3)  # (sets, N, A, 2)
    stated = np.ascontiguousarray(certain, np.float32)
    counts, places, values = (kept[f"{role}.{part}"] for part in ("counts", "places", "values"))
    flat = stated.reshape(counts.size, -1)
    flat[np.repeat(np.arange(counts.size), counts.ravel()), places] = values * np.float32(STEP)
    said = np.where(certain.any(3), certain[..., 1], captions.UNSAID).astype(np.int8)
    return [Heard(*each) for each in zip(said, stated, strict=True)]
