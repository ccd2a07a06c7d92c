"""Families of metrics as prometheus-client has them, each in one call."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric


def gauge(name: str, means: str, value: float) -> Metric:
    return GaugeMetricFamily(name, means, value=value)


def labelled(
    name: str,
    means: str,
    labels: tuple[str, ...],
    values: Mapping[Any, float],
) -> Metric:
    family = GaugeMetricFamily(name, means, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def total(
    name: str,
    means: str,
    labels: tuple[str, ...],
    values: Mapping[Any, float],
) -> Metric:
    family = CounterMetricFamily(name, means, labels=labels)
    for given, value in values.items():
        family.add_metric(given, value)
    return family


def buckets(
    bounds: tuple[float, ...], counts: Iterable[int]
) -> list[tuple[str, float]]:
    """Return what was counted up to each bound, the last one being no bound."""
    below, found = 0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        below += count
        found.append((bound, float(below)))
    return found
