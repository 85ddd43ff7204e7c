"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

_Labels = tuple[tuple[str, str], ...]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Metrics:
    """Metrics by name; may be updated from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}  # name -> kind, what it is
        self._counts: dict[str, dict[_Labels, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._bounds: dict[str, Sequence[float]] = {}
        self._histograms: dict[str, dict[_Labels, list[float]]] = {}  # counts by bound, of all, and their sum

    def counter(self, name: str, text: str) -> None:
        """Declare a counter, which only grows."""
        self._help[name] = "counter", text
        self._counts[name] = {}

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Declare a gauge; `read` gives its value at each scrape."""
        self._help[name] = "gauge", text
        self._gauges[name] = read

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> None:
        """Declare a distribution, counted up to each of `bounds`."""
        self._help[name] = "histogram", text
        self._bounds[name], self._histograms[name] = bounds, {}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            key = tuple(sorted(labels.items()))
            self._counts[name][key] = self._counts[name].get(key, 0.0) + value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count one value of a histogram."""
        bounds = self._bounds[name]
        with self._lock:
            row = self._histograms[name].setdefault(tuple(sorted(labels.items())), [0.0] * (len(bounds) + 2))
            row[bisect_left(bounds, value)] += 1  # the first bound that is not below it
            row[-1] += value

    def value(self, name: str) -> float:
        """A counter over all labels."""
        with self._lock:
            return sum(self._counts[name].values())

    def text(self) -> str:
        """All of it, as a scrape wants it."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                if kind == "gauge":
                    lines.append(f"{name} {self._gauges[name]():g}")
                elif kind == "counter":
                    lines += [f"{name}{_braces(key)} {value:.17g}" for key, value in self._counts[name].items()]
                else:
                    lines += self._rows(name)
        return "\n".join(lines) + "\n"

    def _rows(self, name: str) -> list[str]:
        lines = []
        for key, (*counts, total) in self._histograms[name].items():
            below = 0.0
            for bound, count in zip((*self._bounds[name], "+Inf"), counts, strict=True):
                below += count
                lines.append(f"{name}_bucket{_braces((*key, ('le', str(bound))))} {below:g}")
            lines += [f"{name}_sum{_braces(key)} {total:.17g}", f"{name}_count{_braces(key)} {below:g}"]
        return lines


def _braces(labels: _Labels) -> str:
    pairs = ",".join(
        f'{name}="{value}"'
        for name, value in ((n, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for n, v in labels)
    )
    return f"{{{pairs}}}" if pairs else ""
