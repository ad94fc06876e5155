# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts, and shows them as Prometheus reads them."""
from __future__ import annotations

import threading

BUCKETS = (0.01, 0.1, 1, 10, 100, 1000)


class Metrics:
    """Counters and histograms; gauges are given when they are shown. `labels` are on every line."""

    def __init__(self, **labels: str) -> None:
        self.labels = labels
        self.counters: dict[tuple[str, tuple], float] = {}
        self.histograms: dict[str, list[float]] = {}
        self.lock = threading.Lock()

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        with self.lock:
            self.counters[key] = self.counters.get(key, 0) + by

    def observe(self, name: str, value: float) -> None:
        """All values are kept: a double does not live long."""
        with self.lock:
            self.histograms.setdefault(name, []).append(value)

    def render(self, **gauges: float) -> str:
        with self.lock:
            lines = []
            for name in dict.fromkeys(name for name, _labels in sorted(self.counters)):
                lines.append(f"# TYPE {name} counter")
                lines += [self._line(name, value, **dict(labels)) for (it, labels), value in self.counters.items() if it == name]
            for name, values in sorted(self.histograms.items()):
                lines.append(f"# TYPE {name} histogram")
                lines += [self._line(f"{name}_bucket", sum(value <= top for value in values), le=f"{top:g}") for top in BUCKETS]
                lines.append(self._line(f"{name}_bucket", len(values), le="+Inf"))
                lines += [self._line(f"{name}_sum", sum(values)), self._line(f"{name}_count", len(values))]
            for name, value in gauges.items():
                lines += [f"# TYPE {name} gauge", self._line(name, value)]
        return "\n".join(lines) + "\n"

    def _line(self, name: str, value: float, **labels: str) -> str:
        shown = ",".join(f'{key}="{text}"' for key, text in {**self.labels, **labels}.items())
        return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"
