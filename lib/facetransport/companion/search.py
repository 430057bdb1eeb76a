"""Search by words in a profile's gallery, and the box to type them in (`facetransport.evaluation.search`)."""

from __future__ import annotations

import html
import io
from base64 import b64encode
from functools import partial

import ipywidgets as widgets
import numpy as np
import pandas as pd
from PIL import Image

from facetransport.companion.artifacts import Store
from facetransport.companion.experiments import diface, roles, words
from facetransport.companion.profiles import Profile
from facetransport.data.faceset import FaceSet
from facetransport.evaluation.search import DISTRACTOR, Finder, crowd, first_photographs, labels
from facetransport.recognition.gallery import Gallery

ROLE = "gallery"


def finder(profile: Profile, store: Store, size: int | None = None, kind: str = "flat", seed: int = 0) -> Finder:
    """A search in the people of the role ``gallery``, each enrolled by the first of their photographs.

    What looks at the photographs is the profile's ``words.search``. size: of the gallery with strangers (`crowd`,
    drawn with ``seed``), by default of the people alone. kind: of the index, one of `recognition.gallery.KINDS`.
    Networks and embeddings are shipped, cached, or made now. Memory: 4 size (2 A + 1) bytes, and the index.
    """
    everyone, method = diface.load_faces(profile, store, ROLE), profile.words.search
    people, rows = first_photographs(everyone)
    beliefs = diface.load_beliefs(profile, store, ROLE, method)[rows]
    size = len(people) if size is None else size
    vectors = crowd(beliefs, size, seed)
    whose = np.full(size, DISTRACTOR)
    whose[: len(people)] = people.identity
    index, reader = Gallery.build(vectors, whose, kind, seed=seed), words.load_reader(profile, store)
    return Finder(reader, method, beliefs, index, people, vectors, partial(_photographs, profile, store, rows))


def _photographs(profile: Profile, store: Store, rows: np.ndarray, people: np.ndarray) -> np.ndarray:
    """From the role's FaceSet where it is; else only these are rendered."""
    folder = store.find(roles.recipe(profile, ROLE))
    if folder is None:
        return roles.glimpse(profile, ROLE, rows[people], store).images
    return FaceSet.load(folder).images[rows[people]]


def search_widget(finder: Finder, description: str = "", number: int = 8) -> widgets.VBox:
    """A text box, how many, a button; below them how the text was read and the faces found, with rank and score.

    Its children: HBox (Text, BoundedIntText, Button), HTML with the reading or what is wrong, HTML of the faces. A new
    text (Enter), a new number or a press of the button searches; so does ``description`` at once, unless it is empty.
    """
    text = widgets.Text(description, placeholder="a young woman with red hair", continuous_update=False)
    most = min(50, len(finder))
    count = widgets.BoundedIntText(min(number, most), min=1, max=most, description="faces")
    button, said, faces = widgets.Button(description="Search"), widgets.HTML(), widgets.HTML()

    def search(_: object = None) -> None:
        try:
            understood, found = finder.find(text.value, count.value)
        except ValueError as error:
            said.value, faces.value = html.escape(str(error)), ""
        else:
            said.value = f"read as: {html.escape(str(understood))}<br>looked at by: {finder.method}"
            faces.value = as_html(found, finder.pictures(found))

    text.observe(search, "value")
    count.observe(search, "value")
    button.on_click(search)
    if description:
        search()
    return widgets.VBox([widgets.HBox([text, count, button]), said, faces])


def as_html(found: pd.DataFrame, pictures: np.ndarray, width: int = 96) -> str:
    """What was found, as pictures uint8 (K, H, W, 3) in a row, each over its rank, score and person and the statements
    with the probability that they hold; what is known of the person appears under the pointer. width: of a picture, in
    pixels of the screen."""
    whose = ["distractor" if person == DISTRACTOR else f"person {person}" for person in found["person"]]
    figures = [
        f'<div style="width: {width}px" title="{html.escape(known)}"><img width="{width}" '
        f'src="data:image/png;base64,{_png(picture)}"><br>{label}<br>{who}<br><small>'
        f"{html.escape(holds).replace('; ', '<br>')}</small></div>"
        for known, holds, picture, label, who in zip(
            found["known"], found["holds"], pictures, labels(found), whose, strict=True
        )
    ]
    return f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{"".join(figures)}</div>'


def _png(picture: np.ndarray) -> str:
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "png")
    return b64encode(written.getvalue()).decode()
