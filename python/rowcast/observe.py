"""Events and metrics: one call writes the log line and increments the counter.

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

# event → (level, meaning); rowcast_events_total counts each
EVENTS: dict[str, tuple[int, str]] = {
    "started": (logging.INFO, "The bridge accepts clients."),
    "draining": (logging.INFO, "The bridge received SIGTERM and closes its clients."),
    "stopped": (logging.INFO, "All clients are disconnected."),
    "worker_lost": (logging.WARNING, "A worker ended; the parent restarts it after a pause."),
    "feed_up": (
        logging.INFO,
        "The feed reads messages; `rebooted` if Postgres has crashed since the last read.",
    ),
    "feed_lost": (logging.WARNING, "The feed lost its connection to the database and reconnects."),
    "listen_up": (logging.INFO, "LISTEN receives notifications."),
    "listen_lost": (logging.WARNING, "LISTEN failed; the bridge polls until it works again."),
    "lease_lost": (
        logging.WARNING,
        "Postgres crashed or considered the bridge dead; the bridge wrote its members again.",
    ),
    "heartbeat_failed": (logging.WARNING, "The lease could not be renewed; the bridge retries."),
    "audience_failed": (
        logging.WARNING,
        "Subscriber counts could not be written; the bridge retries.",
    ),
    "presence_failed": (
        logging.WARNING,
        "Presence could not be written or read; the bridge retries.",
    ),
    "upkeep": (logging.INFO, "Leaves were created, closed or dropped."),
    "upkeep_failed": (logging.WARNING, "Upkeep failed; the bridge retries."),
    "outbox_lost": (
        logging.WARNING,
        "Webhooks wait for the database; claimed deliveries are kept.",
    ),
    "keys_unavailable": (
        logging.WARNING,
        "The JWKS could not be fetched; the known keys stay valid.",
    ),
    "handles_unwritten": (
        logging.WARNING,
        "Cursors of resume handles could not be written; the bridge retries.",
    ),
    "census_failed": (
        logging.WARNING,
        "The bridge could not report its clients to a dry run, which continues without them.",
    ),
    "policy_error": (logging.WARNING, "A policy raised an error, which counts as a denial."),
    "refused": (logging.DEBUG, "A request was refused."),
    "closed": (logging.DEBUG, "A subscription lost its access and ended with this code."),
    "session_opened": (logging.DEBUG, "A client connected."),
    "session_closed": (logging.DEBUG, "A client disconnected, or was closed with this code."),
    "slow_client": (logging.INFO, "A client read too slowly and was closed."),
    "internal_error": (logging.ERROR, "A bug in rowcast; the traceback follows."),
}


class Metrics:
    """Prometheus instruments; names of counters end in _total, and names contain the unit."""

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
            "Current subscriptions of all clients.",
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
            "Messages encoded, once per wire for any number of clients.",
            ["wire"],
            registry=self.registry,
        )
        self.presence_events = Counter(
            "rowcast_presence_events_total",
            "Presence joins, updates and leaves, counted before fan-out.",
            registry=self.registry,
        )
        self.received = Counter(
            "rowcast_frames_received_total", "Frames received from clients.", registry=self.registry
        )
        self.refusals = Counter(
            "rowcast_refusals_total", "Requests refused.", ["code"], registry=self.registry
        )
        self.closed = Counter(
            "rowcast_closed_total",
            "Subscriptions ended because they lost their access.",
            ["code"],
            registry=self.registry,
        )
        self.rechecks = Counter(
            "rowcast_rechecks_total",
            "Checks whether a subscription is still allowed.",
            registry=self.registry,
        )
        self.drains = Counter("rowcast_drains_total", "Reads of the feed.", registry=self.registry)
        self.sleeps = Counter(
            "rowcast_sleeps_total",
            "Times the bridge went to sleep until a notification.",
            registry=self.registry,
        )
        self.feed_up = Gauge(
            "rowcast_feed_up",
            "1 while the feed of every worker reads, otherwise 0.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.listen_up = Gauge(
            "rowcast_listen_up",
            "1 while LISTEN works in every worker, otherwise 0.",
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self.webhooks = Counter(
            "rowcast_webhooks_total", "Webhook requests.", ["outcome"], registry=self.registry
        )
        self.webhooks_lost = Counter(
            "rowcast_webhooks_lost_total",
            "Webhook requests that outlasted their lease, so that another bridge sends them too.",
            registry=self.registry,
        )
        self.lag = Histogram(
            "rowcast_insert_to_write_seconds",
            "Seconds from the insert of the newest message of a drain until its write to clients.",
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
        fields: further fields of the log line; never secrets.
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
    """Send the log lines of rowcast to standard error in this format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    _log.handlers[:] = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


def exposition() -> bytes:
    """Return all metrics in the Prometheus text format, combined over all workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(metrics.registry)
    combined = CollectorRegistry()
    MultiProcessCollector(combined)  # type: ignore[no-untyped-call]
    return generate_latest(combined)
