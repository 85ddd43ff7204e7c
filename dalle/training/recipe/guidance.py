"""Whether a recipe trains what the guidance of its sampling options contrasts."""

from __future__ import annotations


def check_guidance(guidance: float, condition: str, dropout: float) -> None:
    """Check that guidance finds predictions with the condition and without it, both of which were trained.

    Args:
        guidance: `sampling.guidance`.
        condition: "caption" or "embedding", whose option is `caption_dropout` or `embedding_dropout`.
        dropout: the value of that option.

    Raises:
        ValueError: a model would be guided that has seen one of the two alone.
    """
    if guidance != 1 and not dropout:
        raise ValueError(
            f"sampling.guidance is {guidance} but {condition}_dropout is 0: guidance needs {condition}s that were "
            "dropped in training; set one of them (guidance 1 is none)"
        )
    if guidance not in (0, 1) and dropout == 1:  # 0 samples without the condition
        raise ValueError(
            f"sampling.guidance is {guidance} but {condition}_dropout is 1: no {condition} would be learned; lower "
            f"{condition}_dropout, or set sampling.guidance=1 for a model without {condition}s"
        )
