"""What readers of published files ask of tensors: shapes, counts, parts joined; what is odd is told of."""

from __future__ import annotations

import pytest
import torch

from dalle.checkpoints.published.state import concat_lazy, count, shape


def test_concat_lazy_equals_vstack() -> None:
    parts = torch.randn(2, 3), torch.randn(1, 3), torch.randn(4, 3)
    lazy = concat_lazy(*parts)
    assert lazy.shape == (7, 3) and lazy.dtype == torch.float32
    assert torch.equal(lazy(), torch.vstack(parts)) and torch.equal(lazy(), lazy())


@pytest.mark.parametrize("other", [(), (2,), (2, 4), (2, 3, 1)])
def test_concat_lazy_refuses_shapes_that_do_not_match(other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"tensors of shapes .*\[2, 3\].*, which do not match"):
        concat_lazy(torch.zeros(other), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="do not match"):
        concat_lazy(torch.zeros(3), torch.zeros(()))


def test_shape_names_missing_tensors_and_wrong_dimensions() -> None:
    tensors = {"a": torch.zeros(2, 3)}
    assert shape(tensors, "a") == shape(tensors, "a", 2) == (2, 3)
    with pytest.raises(ValueError, match=r"its a is \[2, 3\], expected 4 dimensions"):
        shape(tensors, "a", 4)
    with pytest.raises(ValueError, match="it has no tensor b"):
        shape(tensors, "b")


def test_count_names_missing_layers() -> None:
    tensors = {f"layers.{layer}.{kind}": torch.zeros(1) for layer in range(11) for kind in ("weight", "bias")}
    assert count(tensors, r"layers\.(\d+)\.") == 11 and count(tensors, r"blocks\.(\d+)\.") == 0
    for number in ("500", "9" * 5000):  # which would make that many layers, or be no number that Python reads
        with pytest.raises(ValueError, match="it has layers.* but not the layers before it") as error:
            count(tensors | {f"layers.{number}.weight": torch.zeros(1)}, r"layers\.(\d+)\.")
        assert len(str(error.value)) < 200
