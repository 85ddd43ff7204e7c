"""Draws curves as SVG: axes, ticks and lines, with a linear or logarithmic y axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dalle.training.metrics_log import Curve

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito's palette, distinguishable with color blindness
_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 24  # margins around the plot
_DOTTED = 60  # up to this many points get a dot with a tooltip


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels: `low` to `start`, `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
        """Build an axis that fits `values`; if they are all equal up to rounding, they are in the middle."""
        low, high = min(values), max(values)
        if math.isclose(low, high, rel_tol=1e-6):
            # A constant lies in the middle
            low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        return cls(low, high, start, end, log)

    def position(self, value: float) -> float:
        """Return the pixel coordinate of a value."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round numbers on the axis, about four to eight."""
        if not self.log:
            return _round_numbers(self.low, self.high)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        # Few decades: 1, 2 and 5 of each; many: powers of ten
        for digits in ((1, 2, 5), (1,)):
            found = [float(f"{m}e{k}") for k in decades for m in digits]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= 8:
                break
        if len(found) < 3:  # less than a decade or so: a linear scale's numbers
            return _round_numbers(self.low, self.high)
        return found[:: math.ceil(len(found) / 8)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 6)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def can_be_log(curves: Sequence[Curve]) -> bool:
    """Return whether all values are positive, as a logarithmic axis requires."""
    return all(value > 0 for curve in curves for value in curve.values)


def svg(title: str, curves: Sequence[Curve], last: int, log: bool = False) -> str:
    """Draw a chart; returns the SVG element.

    Args:
        title: accessible title, for screen readers.
        curves: curves to draw, none of them empty.
        last: step at the right end, the same for all charts of a run so that they line up.
        log: logarithmic y axis; all values must be positive.
    """
    x_axis = Axis.around([0, last], _LEFT, _WIDTH - _RIGHT)
    # Pixels grow downward
    y_axis = Axis.around([v for c in curves for v in c.values], _HEIGHT - _BOTTOM - 6, _TOP + 6, log)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="{"log" if log else "linear"}">',
        f"<title>{escape(title)}</title>",
        *(_x_tick(x_axis, value) for value in x_axis.ticks() if value == round(value)),  # no half steps
        *(_y_tick(y_axis, value) for value in y_axis.ticks()),
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>',
        *(_line(curve, color(n), x_axis, y_axis) for n, curve in enumerate(curves)),
        "</svg>",
    ]
    return "\n".join(parts)


def color(number: int) -> str:
    """Return the color of the curve with that index."""
    return COLORS[number % len(COLORS)]


def _line(curve: Curve, stroke: str, x_axis: Axis, y_axis: Axis) -> str:
    positions = [(x_axis.position(u), y_axis.position(v)) for u, v in zip(curve.steps, curve.values, strict=True)]
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in positions)
    line = f'<polyline data-name="{escape(curve.name)}" stroke="{stroke}" points="{points}"/>'
    if len(positions) > _DOTTED:
        return line
    labels = [f"{curve.name}, step {u}: {v:.6g}" for u, v in zip(curve.steps, curve.values, strict=True)]
    dots = (
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.5" fill="{stroke}"><title>{escape(text)}</title></circle>'
        for (x, y), text in zip(positions, labels, strict=True)
    )
    return line + "".join(dots)


def _x_tick(axis: Axis, value: float) -> str:
    x = axis.position(value)
    end = _HEIGHT - _BOTTOM
    return (
        f'<path class="grid" d="M{x:.2f} {_TOP}V{end}"/>'
        f'<text class="x" x="{x:.2f}" y="{end + 16}" text-anchor="middle">{value:.10g}</text>'
    )


def _y_tick(axis: Axis, value: float) -> str:
    y = axis.position(value)
    return (
        f'<path class="grid" d="M{_LEFT} {y:.2f}H{_WIDTH - _RIGHT}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{y:.2f}" text-anchor="end" dominant-baseline="middle">{value:.6g}</text>'
    )
