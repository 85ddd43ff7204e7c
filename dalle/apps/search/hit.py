"""An image that a search has found, with its score."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    path: str  # of its file; FILE.tar/NAME, FILE.parquet/ROW, owner/name/SPLIT/ROW where it is one of many in a file
    score: float  # cosine with the query, in [-1, 1]
    caption: str  # "" if it has none; several are lines
    width: int  # pixels
    height: int
    sha256: str  # of the file
    number: int  # its row in the index
    probability: float | None = None  # that it fits, by a SigLIP's judgment of one text

    @property
    def likeness(self) -> float:
        """Its probability where it has one, else its score."""
        return self.score if self.probability is None else self.probability
