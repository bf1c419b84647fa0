"""Limits on calls: concurrency, rates, budgets, leases and retries.

Limits that a provider enforces without stating them are measured by calling it; see `concurrency`.
"""

from ondine_core.limits.admission import AdmissionQueue
from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency, Setting

__all__ = ["AdaptiveConcurrency", "AdmissionQueue", "CallOutcome", "InFlightCall", "Setting"]
