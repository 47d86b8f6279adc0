"""Everything that can be observed, once: a log line and a counter come from the same call.

Messages are counted, not logged; tokens and payloads appear in neither.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["EVENTS", "configure", "exposition", "metrics", "observe"]

# event → (level, what it means). The counter rowcast_events_total counts each.
EVENTS: dict[str, tuple[int, str]] = {
    "started": (logging.INFO, "The bridge listens for clients."),
    "draining": (logging.INFO, "SIGTERM came; clients are sent away."),
    "stopped": (logging.INFO, "All clients are gone."),
    "worker_lost": (logging.WARNING, "A worker ended and is started again after a pause."),
    "feed_up": (
        logging.INFO,
        "The feed reads; `rebooted` when Postgres had crashed since.",
    ),
    "feed_lost": (logging.WARNING, "The feed lost the database and connects again."),
    "listen_up": (logging.INFO, "LISTEN works."),
    "listen_lost": (logging.WARNING, "LISTEN was lost; the bridge polls until it is back."),
    "lease_lost": (
        logging.WARNING,
        "Postgres crashed, or took the bridge for dead; it wrote anew who is there.",
    ),
    "heartbeat_failed": (logging.WARNING, "The lease could not be renewed; tried again."),
    "audience_failed": (logging.WARNING, "Counts could not be written; tried again."),
    "presence_failed": (logging.WARNING, "Presence could not be written or read; tried again."),
    "upkeep": (logging.INFO, "Leaves were made, closed or dropped."),
    "upkeep_failed": (logging.WARNING, "Upkeep failed and is tried again."),
    "outbox_lost": (logging.WARNING, "Webhooks wait for the database; claimed ones are kept."),
    "keys_unavailable": (logging.WARNING, "The JWKS could not be fetched; known keys stay."),
    "handles_unwritten": (
        logging.WARNING,
        "Cursors of handles could not be written down; tried again.",
    ),
    "census_failed": (
        logging.WARNING,
        "Who is connected could not be told to a dry run; it goes on without this bridge.",
    ),
    "policy_error": (logging.WARNING, "A policy raised an error and thereby denied."),
    "refused": (logging.DEBUG, "A request was refused."),
    "closed": (logging.DEBUG, "A subscription lost its access and was ended with this code."),
    "session_opened": (logging.DEBUG, "A client connected."),
    "session_closed": (logging.DEBUG, "A client left, or was closed with this code."),
    "slow_client": (logging.INFO, "A client did not read and was closed."),
    "internal_error": (logging.ERROR, "A mistake in rowcast; the traceback follows."),
}


class Metrics:
    """Prometheus instruments; counters end in _total, units stand in the name."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter(
            "rowcast_events_total", "Events by name.", ["event"], registry=self.registry
        )
        self.connections = Gauge(
            "rowcast_connections",
            "Clients connected.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.subscriptions = Gauge(
            "rowcast_subscriptions",
            "Subscriptions of all clients.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.messages = Counter(
            "rowcast_messages_total", "Messages read from the feed.", registry=self.registry
        )
        self.deliveries = Counter(
            "rowcast_deliveries_total", "Messages written to clients.", registry=self.registry
        )
        self.encodings = Counter(
            "rowcast_encodings_total",
            "Messages encoded: each once per wire, however many clients hear it.",
            ["wire"],
            registry=self.registry,
        )
        self.presence_events = Counter(
            "rowcast_presence_events_total",
            "Joins, updates and leaves told to clients, before fan-out.",
            registry=self.registry,
        )
        self.received = Counter(
            "rowcast_frames_received_total", "Frames from clients.", registry=self.registry
        )
        self.refusals = Counter(
            "rowcast_refusals_total", "Requests refused.", ["code"], registry=self.registry
        )
        self.closed = Counter(
            "rowcast_closed_total",
            "Subscriptions that lost their access.",
            ["code"],
            registry=self.registry,
        )
        self.rechecks = Counter(
            "rowcast_rechecks_total",
            "Questions whether a subscription is still allowed.",
            registry=self.registry,
        )
        self.drains = Counter("rowcast_drains_total", "Reads of the feed.", registry=self.registry)
        self.sleeps = Counter(
            "rowcast_sleeps_total", "Times the bridge fell asleep.", registry=self.registry
        )
        self.feed_up = Gauge(
            "rowcast_feed_up",
            "1 while the feed reads, of all workers.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.listen_up = Gauge(
            "rowcast_listen_up",
            "1 while LISTEN works, of all workers.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.webhooks = Counter(
            "rowcast_webhooks_total", "Webhook requests.", ["outcome"], registry=self.registry
        )
        self.webhooks_lost = Counter(
            "rowcast_webhooks_lost_total",
            "Webhook requests that outlasted their lease, so another bridge sends them too.",
            registry=self.registry,
        )
        self.lag = Histogram(
            "rowcast_insert_to_write_seconds",
            "From the insert of the newest message of a drain until it was written.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
            registry=self.registry,
        )


metrics = Metrics()
_log = logging.getLogger("rowcast")


def observe(event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log and count one event.

    Args:
        event: a key of `EVENTS`.
        exc_info: add the traceback of the exception that is being handled.
        fields: what the log line says besides; never secrets.
    """
    metrics.events.labels(event).inc()
    level = EVENTS[event][0]
    if _log.isEnabledFor(level):
        _log.log(level, event, extra={"fields": fields}, exc_info=exc_info)


class _Formatter(logging.Formatter):
    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(fields, default=str)
        trace = "\n" + fields.pop("traceback") if "traceback" in fields else ""
        return " ".join(f"{key}={value}" for key, value in fields.items()) + trace


def configure(form: Literal["text", "json"]) -> None:
    """Send the log lines of rowcast to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    _log.handlers[:] = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


def exposition() -> bytes:
    """All instruments in Prometheus' text format; of all workers where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(metrics.registry)
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together)
