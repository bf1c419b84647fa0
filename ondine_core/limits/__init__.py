"""What holds calls back: concurrency, rates, budgets, leases, retries.

Limits that a provider enforces without naming them are found by calling it. A refusal delays its own call, and its
concurrency slot for a moment. When calls are refused more often than by chance (`ChangeDetector`), the limit is lowered
to what was let through meanwhile: first the calls in flight, and if that does not help, the calls a second
(`RateEstimator`). If neither helps, refusals are due to chance. A limit is kept for a while and then raised ever faster
until calls are refused again (`ProbedLimit`). When the latest calls all fail, calls stop, and one at a time probes
(`AdaptiveConcurrency`).
"""

from ondine_core.limits.admission import AdmissionQueue
from ondine_core.limits.change_detector import CallOutcome, InFlightCall
from ondine_core.limits.concurrency import AdaptiveConcurrency, Setting

__all__ = ["AdaptiveConcurrency", "AdmissionQueue", "CallOutcome", "InFlightCall", "Setting"]
