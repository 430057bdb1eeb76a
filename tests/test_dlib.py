from __future__ import annotations

import dlib
import numpy as np
import pytest
import torch

from facetransport.companion.experiments import recognisers
from facetransport.data import orl
from facetransport.data.detection import model_file
from facetransport.data.faceset import FaceSet
from facetransport.recognition import dlib as module
from facetransport.recognition import dlib_network
from facetransport.recognition.dlib import DlibRecogniser, fit_centre
from facetransport.recognition.recogniser import Recogniser, embed_faceset, is_white_box


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    """Three photographs of each of three people, at 64 px."""
    some = [p for p in orl.photographs() if p[0] in (2, 11, 25) and p[1] <= 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orl, "photographs", lambda: iter(some))
        return orl.build(64)[0]


@pytest.fixture(scope="module")
def raw(faces) -> np.ndarray:
    return DlibRecogniser().raw(faces.images)


def test_follows_the_protocol_as_a_black_box(faces):
    recogniser = DlibRecogniser()
    assert isinstance(recogniser, Recogniser) and not is_white_box(recogniser)
    images = faces.tensor(slice(0, 2)).requires_grad_()
    embeddings = recogniser.embed(images)
    assert embeddings.shape == (2, 128) and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_people_are_told_apart_once_centred(faces, raw):
    same = faces.identity[:, None] == faces.identity
    upper = np.triu(np.ones_like(same), 1)

    def gap(recogniser: DlibRecogniser) -> float:
        e = recogniser.centred(raw)
        cosine = e @ e.T
        return float(cosine[same & (upper > 0)].min() - cosine[~same].max())

    assert gap(DlibRecogniser()) > 0  # every genuine pair above every impostor pair
    plain = DlibRecogniser().centred(raw)
    assert (plain @ plain.T)[~same].min() > 0.75  # the narrow cone
    assert gap(DlibRecogniser(*fit_centre(raw))) > 5 * gap(DlibRecogniser())


def test_statistics_centre_and_scale(raw):
    mean, std = fit_centre(raw)
    scaled = (raw - mean) / std
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)


def test_embeddings_are_those_of_dlib_itself(faces, raw):
    """The library that published the network, on the same chips."""
    theirs = dlib.face_recognition_model_v1(str(model_file(dlib_network.WEIGHTS)))
    chips = [np.ascontiguousarray(chip) for chip in dlib_network.chips(faces.images)]
    np.testing.assert_allclose(raw, np.array(theirs.compute_face_descriptor(chips)), atol=5e-6)


def test_batches_change_nothing(faces, raw, monkeypatch):
    monkeypatch.setattr(dlib_network, "BATCH", 2)
    np.testing.assert_allclose(dlib_network.describe(faces.images), raw, atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "cut in a header", "other"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, damage):
    whole = model_file(dlib_network.WEIGHTS).read_bytes()
    path = tmp_path / "network.dat"
    header = whole.index(b"\x05con_4") + len(b"\x05con_4")
    path.write_bytes({"cut": whole[:-1000], "cut in a header": whole[:header], "other": b"not a network"}[damage])
    with pytest.raises(ValueError, match=r"network\.dat: expected dlib's face recognition network"):
        dlib_network.load(path)


def test_colour_order_is_told_apart(raw, faces):
    """A red cast must not embed as a blue one: the chip is RGB all the way."""
    red = (faces.images[:1] * np.array([1.0, 0.4, 0.4])).astype(np.uint8)
    first, second = DlibRecogniser().raw(red), DlibRecogniser().raw(red[..., ::-1].copy())
    assert np.linalg.norm(first - second) > 0.02


def test_size_of_the_crop_matters_little(faces, monkeypatch):
    """64 px and 128 px crops of one photograph are nearer to each other than to the other people."""
    first = [p for p in orl.photographs() if p[0] in (2, 11, 25) and p[1] == 1]
    monkeypatch.setattr(orl, "photographs", lambda: iter(first))
    large = DlibRecogniser().raw(orl.build(128)[0].images)
    small = DlibRecogniser().raw(faces.images[::3])
    distance = np.linalg.norm(large[:, None] - small, axis=-1)
    assert (distance.argmin(1) == np.arange(3)).all() and np.diag(distance).max() < 0.3


def test_artefact_holds_the_statistics(faces, raw, tmp_path, smoke):
    faces.save(tmp_path / "val")
    recognisers._make_dlib(tmp_path, (tmp_path / "val",))
    assert recognisers.dlib_recipe(smoke).upstream[0].stage == "rendered.val"
    loaded = module.load(tmp_path / recognisers.STATISTICS)
    np.testing.assert_allclose(loaded.mean, raw.mean(0), atol=1e-5)
    np.testing.assert_allclose(embed_faceset(loaded, faces), DlibRecogniser.fitted(faces).centred(raw), atol=1e-4)


def test_refusals(faces):
    recogniser = DlibRecogniser()
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        recogniser.embed(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"expected uint8 \(B, S, S, 3\)"):
        recogniser.raw(faces.images[:, :, :32])
    with pytest.raises(ValueError, match="128 finite numbers"):
        DlibRecogniser(mean=np.zeros(3))
    with pytest.raises(ValueError, match="positive"):
        DlibRecogniser(std=np.zeros(128))
    with pytest.raises(ValueError, match="N >= 2"):
        fit_centre(np.zeros((1, 128)))
    with pytest.raises(ValueError, match="NaN"):
        recogniser.embed(torch.full((1, 3, 64, 64), torch.nan))
