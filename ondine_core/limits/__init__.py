"""Limits that a provider enforces without naming them: calls in flight, calls a second, outages."""

from ondine_core.limits.admission import AdmissionQueue
from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency, Setting

__all__ = ["AdaptiveConcurrency", "AdmissionQueue", "CallOutcome", "InFlightCall", "Setting"]
