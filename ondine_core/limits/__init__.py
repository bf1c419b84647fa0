"""What holds calls back: concurrency, rates, budgets, leases, retries.

Limits that a provider enforces without naming them are found by calling it; `concurrency` says how. A refusal delays
its own call, and its concurrency slot for a moment. When calls are refused more often than by chance, what was in
flight as they left tells whether the calls in flight are limited or the calls a second (`ChangeDetector`). A limit is
kept for a while and then raised ever faster until calls are refused again (`ProbedLimit`).
"""

from ondine_core.limits.admission import AdmissionQueue
from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency, Setting

__all__ = ["AdaptiveConcurrency", "AdmissionQueue", "CallOutcome", "InFlightCall", "Setting"]
