"""How far a call is: the one type of progress callbacks. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called after each step with how much is done and how much there is in all; each function says of what."""
