"""tau, first half, a second time: which statements a text makes, clause by clause.

    text -> clauses -> frozen MiniLM's sentence state of each (C, 384) -> nothing or one statement (C, 1 + 2 A), softmax
         -> a text makes a statement if any of its clauses does: 1 - prod (1 - p), the "noisy or"      (B, A, 3)

`facetransport.diffusion.statements.StatementReader` sees every word piece of a whole text and learns training's words
by heart. Here a clause is one point of a space that was made for what means the same to lie near (Sentence-BERT,
Reimers and Gurevych 2019, arXiv 1908.10084): a word that no text of training holds is understood better, a template
worse; so both are asked. Of a training text it is known what it says, not in which clause (multiple-instance learning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facetransport.diffusion.text import SentenceEncoder, TextEncoder
from facetransport.training import Loss
from facetransport.world.captions import UNSAID
from facetransport.world.clauses import clauses

SURELY = 1e-6  # nothing is less probable: logarithms stay finite


class ClauseNetwork(nn.Module):
    """Sentence states of clauses -> what each text says. width: of the hidden layer; dim: e, of the states."""

    def __init__(self, attributes: int, width: int, dim: int = TextEncoder.dim) -> None:
        super().__init__()
        self.attributes = attributes
        hidden = (nn.Dropout(0.3), nn.Linear(dim, width), nn.SiLU(), nn.Dropout(0.3))
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1 + 2 * attributes))

    def forward(self, states: Tensor, text: Tensor, texts: int) -> Tensor:
        """states float (C, e), of unit root mean square; text int (C,), of which of the B = ``texts`` each is a
        clause -> float32 (B, A, 3), how probable it is that an attribute is unsaid, said absent, said present."""
        return any_of(self.of_clauses(states), text, texts)

    def of_clauses(self, states: Tensor) -> Tensor:
        """(C, e) -> float32 (C, A, 2): that a clause says an attribute absent, present."""
        return self.layers(states).float().softmax(1)[:, 1:].unflatten(1, (self.attributes, 2))


def any_of(stated: Tensor, text: Tensor, texts: int) -> Tensor:
    """How probable it is that a text leaves an attribute unsaid, says it absent, present, float (B, A, 3), where any of
    its clauses may say it: stated (C, A, 2), of the clauses; text int (C,). Where clauses disagree it is shared."""
    zeros = stated.new_zeros(texts, *stated.shape[1:])
    silent = zeros[..., 0].index_add(0, text, (1 - stated.sum(2)).clamp_min(SURELY).log()).exp()
    said = zeros.index_add(0, text, stated)
    share = said / said.sum(2, keepdim=True).clamp_min(SURELY)
    return torch.cat([silent[..., None], (1 - silent)[..., None] * share], 2)


@dataclass(frozen=True)
class ClausewiseReader:
    """A trained `ClauseNetwork`."""

    network: ClauseNetwork
    words: SentenceEncoder

    @torch.inference_mode()
    def probable(self, texts: Sequence[str]) -> Tensor:
        """float32 (B, A, 3), as `ClauseNetwork` has them. ValueError for a blank text."""
        parts = [clauses(text) for text in texts]
        states, where = self.states([clause for part in parts for clause in part]), self._where
        return self.network(states.to(where) * self.words.dim**0.5, _places(parts).to(where), len(texts)).cpu()

    def states(self, texts: Sequence[str]) -> Tensor:
        """float32 (C, e), unit norm: the sentence states, each text read once."""
        once = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        return self.words.sentence_states(list(once))[[once[text] for text in texts]]

    @torch.inference_mode()
    def of_clauses(self, states: Tensor) -> np.ndarray:
        """Of such states, of one clause each: float32 (C, A, 2), that it says an attribute absent, present."""
        return self.network.of_clauses(states.to(self._where) * self.words.dim**0.5).cpu().numpy()

    @property
    def _where(self) -> torch.device:
        return next(self.network.parameters()).device


def _places(parts: Sequence[Sequence[str]]) -> Tensor:
    """Of each clause, the number of its text."""
    return torch.repeat_interleave(torch.tensor([len(part) for part in parts], dtype=torch.int64))


def clausewise_loss(texts: Sequence[str], said: np.ndarray, words: SentenceEncoder) -> Loss:
    """Cross-entropy of what texts say of each attribute, said int8 (N, A) in {-1, 0, 1}; rows are theirs."""
    parts = [clauses(text) for text in texts]
    known = {clause: i for i, clause in enumerate(dict.fromkeys(c for part in parts for c in part))}
    states = words.sentence_states(list(known)) * words.dim**0.5
    target = torch.from_numpy(said.astype(np.int64) - UNSAID)

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        told = [parts[row] for row in rows.tolist()]
        asked = states[[known[clause] for part in told for clause in part]].to(generator.device)
        found = network(asked, _places(told).to(generator.device), len(rows))
        return F.nll_loss(found.clamp_min(SURELY).log().flatten(0, 1), target[rows].flatten().to(generator.device))

    return loss
