"""What happens in a run, for whoever wants to watch: events as frozen values, and observers that take them."""

from __future__ import annotations

from ondine_core.telemetry.events import (
    AskedBatch,
    BatchEnded,
    Booked,
    CallEnded,
    CallsEnded,
    Content,
    Endpoint,
    Event,
    Held,
    Observer,
    Progressed,
    Retried,
    RowsFailed,
    Run,
    RunEnded,
    RunStarted,
)
from ondine_core.telemetry.registry import ObserverSpec, check_observers, register_observer

__all__ = [
    "AskedBatch",
    "BatchEnded",
    "Booked",
    "CallEnded",
    "CallsEnded",
    "Content",
    "Endpoint",
    "Event",
    "Held",
    "Observer",
    "ObserverSpec",
    "Progressed",
    "Retried",
    "RowsFailed",
    "Run",
    "RunEnded",
    "RunStarted",
    "check_observers",
    "register_observer",
]
