"""Events of a run as frozen values, and the observers that receive them."""

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
