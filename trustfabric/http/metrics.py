"""Metrics in the formats of Prometheus: text, or OpenMetrics where that is asked for.

A scrape reads no fleet: the Meter's reading is kept for some seconds, and everything
else is a number that somebody counted as it happened (docs/metrics.md).
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from trustfabric.actors.counters import COUNTED, MEASURED, Counters, Spread
from trustfabric.actors.metrics import Measure, Reading
from trustfabric.db.metrics import Fleet, Stage
from trustfabric.domain.attestation.collateral import Stock
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.errors import FabricError, ForbiddenError
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import FACE, Face
from trustfabric.http.families import buckets, gauge, labelled, total
from trustfabric.http.parse import Query
from trustfabric.http.tokens import Role
from trustfabric.supervision import Address, AskError, Counts

routes = web.RouteTableDef()

ASK_S = 5.0
"""After so long a scrape goes without what the Meter looks up."""

REASONS = 20
"""Reasons of dead letters that are kept apart; the rest is `other`."""

_STAGES = ("awaiting-approval", "ready", "backing-off", "running")
_PROCESS = ProcessCollector(registry=None)


@routes.get("/metrics")
async def show(request: web.Request) -> web.Response:
    Query(request)
    face = request.app[FACE]
    _check(request, face)
    try:
        reading = await face.meter.ask(Measure(), within_s=ASK_S)
    except (FabricError, AskError):
        reading = Reading(at=face.now())

    registry = CollectorRegistry()
    registry.register(_Everything(face, reading))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(registry), headers={"Content-Type": content_type})


def _check(request: web.Request, face: Face) -> None:
    """Let in admins, and tokens that are for this only: it tells of every owner."""
    if face.metrics_open:
        return
    principal = request[PRINCIPAL]
    if principal.role is not Role.ADMIN and not principal.metrics:
        raise ForbiddenError("this needs role admin, or a token of role metrics")


class _Everything(Collector):
    """One scrape."""

    def __init__(self, face: Face, reading: Reading) -> None:
        self._face = face
        self._reading = reading

    def collect(self) -> Iterable[Metric]:
        face, reading = self._face, self._reading
        yield labelled("trustfabric_build_info", "What runs.", ("version",), _build())
        yield from _looked_up(reading)
        yield from _counted(face.counters)
        yield from _streams(face)
        yield from _pools(face.database.usage())
        yield from _supervision(face.runtime.counts())
        yield labelled(
            "trustfabric_mailbox_depth",
            "Messages that wait in the mailbox of a permanent actor.",
            ("actor",),
            {(each.name,): each.cell.depth for each in _addresses(face)},
        )
        yield from _PROCESS.collect()


def _build() -> dict[tuple[str, ...], float]:
    try:
        return {(version("trustfabric"),): 1.0}
    except PackageNotFoundError:  # run from a checkout that was never installed
        return {("unknown",): 1.0}


# --- what the Meter looked up ------------------------------------------------------


def _looked_up(reading: Reading) -> Iterator[Metric]:
    is_up = reading.fleet is not None
    yield gauge(
        "trustfabric_database_up", "Whether the database answered the scrape.", is_up
    )
    yield from _collateral(reading.collateral)
    if reading.fleet is None:
        return  # absent, rather than told to be nothing
    yield from _fleet(reading.fleet)
    yield from _queues(reading)
    yield labelled(
        "trustfabric_holds",
        "Holds in force, by scope.",
        ("scope",),
        {(each,): reading.holds.get(each, 0) for each in ("instance", "owner", "all")},
    )
    yield labelled(
        "trustfabric_breakers_open",
        "Breakers that hold automatic runs, by scope.",
        ("scope",),
        {(each,): reading.breakers.get(each, 0) for each in ("owner", "all")},
    )
    yield labelled(
        "trustfabric_listener_lag_seconds",
        "Age of the oldest event that was not handed on yet, by stream.",
        ("stream",),
        {(stream,): late_s for stream, late_s in reading.lag_s.items()},
    )
    yield gauge(
        "trustfabric_metrics_reading_seconds",
        "How long it took to look these up.",
        reading.took_s,
    )


def _collateral(stocks: Mapping[str, Stock]) -> Iterator[Metric]:
    yield labelled(
        "trustfabric_collateral_ends_timestamp_seconds",
        "When the first usable file of a maker's collateral runs out, as Unix time.",
        ("maker",),
        {
            (maker,): each.ends.timestamp()
            for maker, each in stocks.items()
            if each.ends
        },
    )
    yield labelled(
        "trustfabric_collateral_unusable",
        "Files of collateral that can't be used, by maker.",
        ("maker",),
        {(maker,): each.unusable for maker, each in stocks.items()},
    )


def _fleet(fleet: Fleet) -> Iterator[Metric]:
    yield labelled(
        "trustfabric_instances",
        "Instances that are not terminated, by lifecycle state.",
        ("lifecycle",),
        {(each,): fleet.lifecycles.get(each, 0) for each in Lifecycle},
    )
    yield labelled(
        "trustfabric_instances_by_status",
        "Instances that are not terminated, by attestation status.",
        ("status",),
        {(each,): fleet.statuses.get(each, 0) for each in AttestationStatus},
    )
    yield gauge(
        "trustfabric_instances_stale",
        "Instances that shall run and whose evidence has run out.",
        fleet.stale,
    )
    yield labelled(
        "trustfabric_servers",
        "Servers, by status.",
        ("status",),
        {(each,): fleet.servers.get(each, 0) for each in ServerStatus},
    )


def _queues(reading: Reading) -> Iterator[Metric]:
    stages = {stage.name: stage for stage in reading.runs}
    yield labelled(
        "trustfabric_runs_active",
        "Remediation runs that are not over, by where they stand.",
        ("stage",),
        {(each,): _count(stages.get(each)) for each in _STAGES},
    )
    yield labelled(
        "trustfabric_runs_oldest_age_seconds",
        "Since when the oldest of them is queued.",
        ("stage",),
        {(each,): _age_s(stages.get(each), reading.at) for each in _STAGES},
    )
    yield gauge(
        "trustfabric_runs_overdue",
        "Remediation runs that are not over and past their SLA deadline.",
        sum(stage.overdue for stage in reading.runs),
    )
    refreshes = {stage.name: stage for stage in reading.refreshes}
    yield labelled(
        "trustfabric_refreshes_active",
        "Refreshes of certifications that are not over, by where they stand.",
        ("stage",),
        {(each,): _count(refreshes.get(each)) for each in ("queued", "claimed")},
    )
    yield gauge(
        "trustfabric_refreshes_oldest_overdue_seconds",
        "For how long the longest waiting refresh has been due.",
        _age_s(refreshes.get("queued"), reading.at),
    )


def _count(stage: Stage | None) -> int:
    return 0 if stage is None else stage.count


def _age_s(stage: Stage | None, now: datetime) -> float:
    if stage is None or stage.oldest is None:
        return 0.0
    return max(0.0, (now - stage.oldest).total_seconds())


# --- what was counted --------------------------------------------------------------


def _counted(counters: Counters) -> Iterator[Metric]:
    for family in COUNTED:
        counter = CounterMetricFamily(family.name, family.means, labels=family.labels)
        if not family.labels:
            counter.add_metric((), dict(counters.counts(family)).get((), 0))
        else:
            for labels, count in counters.counts(family):
                counter.add_metric(labels, count)
        yield counter
    for measured in MEASURED:
        histogram = HistogramMetricFamily(
            measured.name, measured.means, labels=measured.labels
        )
        known = dict(counters.spreads(measured))
        if not measured.labels:
            known.setdefault((), Spread(measured.buckets))
        for labels, spread in known.items():
            histogram.add_metric(
                labels, buckets(spread.buckets, spread.counts), spread.sum
            )
        yield histogram


def _streams(face: Face) -> Iterator[Metric]:
    yield gauge(
        "trustfabric_stream_clients", "Streams that are open.", len(face.streams)
    )
    yield gauge(
        "trustfabric_stream_queued_events",
        "Events that wait for slow clients of streams, all together.",
        face.room.total,
    )
    yield gauge(
        "trustfabric_stream_queued_bytes",
        "Bytes written to clients of streams that their sockets did not take yet.",
        sum(socket.get_write_buffer_size() for socket in face.sockets.values()),
    )


def _pools(usage: Mapping[str, Mapping[str, int]]) -> Iterator[Metric]:
    for key, name, means in (
        ("pool_max", "limit", "Connections that the pool may open."),
        ("pool_size", "size", "Connections of the pool."),
        ("pool_available", "idle", "Connections of the pool that nobody uses."),
        ("requests_waiting", "waiting", "Who waits for a connection."),
    ):
        yield labelled(
            f"trustfabric_postgres_pool_{name}",
            means,
            ("pool",),
            {(pool,): stats.get(key, 0) for pool, stats in usage.items()},
        )
    in_use = {
        (pool,): stats.get("pool_size", 0) - stats.get("pool_available", 0)
        for pool, stats in usage.items()
    }
    yield labelled(
        "trustfabric_postgres_pool_in_use", "Connections in use.", ("pool",), in_use
    )
    for key, name, means in (
        ("requests_num", "requests", "Times that a connection was asked for."),
        ("requests_queued", "requests_queued", "Those that had to wait for one."),
        ("requests_errors", "requests_failed", "Those that got none."),
        ("connections_lost", "connections_lost", "Connections found dead."),
    ):
        yield total(
            f"trustfabric_postgres_pool_{name}",
            means,
            ("pool",),
            {(pool,): stats.get(key, 0) for pool, stats in usage.items()},
        )


def _supervision(counts: Counts) -> Iterator[Metric]:
    yield labelled(
        "trustfabric_actors",
        "Actors that are up, by their class.",
        ("kind",),
        {(kind,): count for kind, count in counts.up.items()},
    )
    yield total(
        "trustfabric_actor_starts", "Incarnations of actors.", (), {(): counts.started}
    )
    yield total(
        "trustfabric_actor_restarts",
        "Falls of actors that were followed by a restart, by how they fell.",
        ("exit",),
        {(kind.value,): count for kind, count in counts.restarts.items()},
    )
    yield total(
        "trustfabric_dead_letters",
        "Messages that reached nobody, by reason.",
        ("reason",),
        _few(counts.dead_letters),
    )
    for name, means, count in (
        (
            "trustfabric_messages_skipped",
            "Messages not handled since their deadline or their asker was gone.",
            counts.skipped,
        ),
        (
            "trustfabric_actor_zombies",
            "Coroutines that outlasted the end of their actor.",
            counts.zombies,
        ),
        (
            "trustfabric_loop_held",
            "Times that something held the event loop past the watchdog's limit.",
            counts.held,
        ),
    ):
        yield total(name, means, (), {(): count})
    lag = HistogramMetricFamily(
        "trustfabric_loop_lag_seconds",
        "How late the event loop sees to what is due, as the watchdog samples it.",
    )
    lag.add_metric((), buckets(counts.lag.bounds, counts.lag.counts), counts.lag.total)
    yield lag


def _few(reasons: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    """Keep the most frequent reasons apart, without their particulars."""
    summed: dict[str, int] = {}
    for reason, count in reasons.items():
        word = reason.partition(":")[0][:60]
        summed[word] = summed.get(word, 0) + count
    ranked = sorted(summed.items(), key=lambda item: (-item[1], item[0]))
    few: dict[tuple[str, ...], float] = {(r,): count for r, count in ranked[:REASONS]}
    rest = sum(count for _, count in ranked[REASONS:])
    return {**few, ("other",): rest} if rest else few


def _addresses(face: Face) -> tuple[Address[Any], ...]:
    return (
        face.trust,
        face.broadcaster,
        face.attestation,
        face.servers,
        face.dispatcher,
        face.playbooks,
        face.refresher,
        face.meter,
    )
