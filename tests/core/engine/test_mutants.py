"""Mutation tests: each mutant breaks one law on purpose, and a test of that law must fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = (
    "tests/core/engine/test_engine.py",
    "tests/core/engine/test_other_runs.py",
    "tests/core/engine/jobs/test_crashes.py",
    "tests/core/engine/jobs/test_job_runs.py",
    "tests/core/limits/test_budget.py",
    "tests/core/limits/test_rate_limiter.py",
    "tests/contracts/test_media.py",
    "tests/core/preprocessing/test_media_fetching.py",
    "tests/core/providers/test_charges.py",
    "tests/core/providers/test_media_tokens.py",
    "tests/adversary/test_lease.py",
    "tests/adversary/test_store.py",
)
HYPOTHESIS = "_hypothesis_pytestplugin"
"""The only plugin; the others are not loaded."""
PROFILE = "--hypothesis-profile=first-find"
CAUGHT = 1
"""Exit status of pytest if and only if a test failed."""


@dataclass(frozen=True)
class Mutant:
    """What is broken, where, and how: `good` is in the file once and becomes `bad`; `law` selects the tests."""

    breaks: str
    file: str
    good: str
    bad: str
    law: str


MUTANTS = (
    Mutant(
        "an answer goes to another row",
        "steps.py",
        "answers.append((item.key,",
        "answers.append((batch.items[-1].key,",
        "aligned",
    ),
    Mutant(
        "one of two different answers is believed",
        "strategy.py",
        "if place not in doubtful",
        "if place is not None",
        "without_a_clear_answer",
    ),
    Mutant("the last row of a batch is lost", "packing.py", "group.append(item)", "group[:] = [item]", "aligned"),
    Mutant(
        "a reply that was cut is parsed as if whole",
        "steps.py",
        'if ending != "whole":',
        "if None:",
        "unreadable_batches",
    ),
    Mutant(
        "an unreadable batch is asked again as it was",
        "steps.py",
        "len(batch.items) // 2",
        "0",
        "unreadable_batches",
    ),
    Mutant("repairs are never used up", "steps.py", "batch.repairs_left - 1", "batch.repairs_left", "terminating"),
    Mutant(
        "rows that are to be asked again are forgotten",
        "workers.py",
        "return result.retry",
        "return ()",
        "without_a_clear_answer",
    ),
    Mutant(
        "stored answers are asked again",
        "run.py",
        "if policy.reuse_since == inf:",
        "if True:",
        "idempotent",
    ),
    Mutant(
        "answers are not kept",
        "call.py",
        "kept = result if pending.keep",
        "kept = result if None",
        "idempotent",
    ),
    Mutant(
        "answers are reported before they are queued for commit",
        "call.py",
        "await run.runtime.store.settle(settled)",
        "asyncio.ensure_future(run.runtime.store.settle(settled))",
        "queued_for_commit",
    ),
    Mutant(
        "calls delayed by a stalled event loop leave together",
        "rate_limiter.py",
        "free_at - early_s - now\n            if wait_s > 0:",
        "free_at - early_s - now\n            if wait_s > 60:",
        "late_do_not_leave_together",
    ),
    Mutant("calls in flight are not counted", "concurrency.py", "self.in_flight += 1\n", "pass\n", "bounded"),
    Mutant(
        "an interrupted call is made again",
        "call.py",
        "except asyncio.CancelledError:\n            self._lose(sent)\n            raise",
        "except asyncio.CancelledError:\n            raise TransientError('again')",
        "interrupt",
    ),
    Mutant(
        "a Retry-After holds back no other call while all are refused",
        "concurrency.py",
        "self._probe_at = max(self._probe_at, now + retry_after_s)",
        "pass",
        "retry_after",
    ),
    Mutant("rates are not booked", "call.py", "await limiter.acquire(tokens)", "pass", "paced"),
    Mutant("a reply is not counted", "cost_tracker.py", "self._answered += 1", "pass", "what_the_provider_counted"),
    Mutant(
        "a fatal error does not end the run",
        "call.py",
        'if ends == "row":',
        "if True:",
        "fatal",
    ),
    Mutant("the worst case is not reserved", "cost_tracker.py", "bound * self._excess", "bound * 0", "solvent"),
    Mutant(
        "tokens missing from a reply's usage cost nothing",
        "charges.py",
        "else bound_usd\n",
        "else Decimal(0)\n",
        "solvent",
    ),
    Mutant(
        "a process that was suspended past its lease continues to make calls",
        "call.py",
        "await self._ensure_lease(sent)",
        "pass",
        "laptop",
    ),
    Mutant(
        "a lease goes by the wall clock",
        "lease.py",
        "state.ends_at_boot - self.clock.boot()",
        "state.ends_at - self.clock.now()",
        "setting_clocks",
    ),
    Mutant(
        "a store whose files were removed is still written to",
        "sqlite.py",
        "        self._check_files()\n        if self._log_sync",
        "        if self._log_sync",
        "removed_store_is_noticed",
    ),
    Mutant("the cost of a lost call is refunded", "call.py", "pending.charge = _UNKNOWN_CHARGE", "pass", "solvent"),
    Mutant(
        "a prompt that another run has in flight is asked",
        "workers.py",
        "if pending.taken:",
        "if None:",
        "prompt_is_asked_once",
    ),
    Mutant(
        "a batch job is created before the store records it",
        "submitting.py",
        'state="creating",',
        'state="preparing",',
        "whenever_the_process_is_killed",
    ),
    Mutant(
        "a batch job whose creation was not confirmed is submitted again",
        "submitting.py",
        'return state == "creating" and',
        "return False and",
        "whenever_the_process_is_killed",
    ),
    Mutant(
        "the worst-case cost of a batch job is not reserved",
        "building.py",
        "amounts = [request.units for",
        "amounts = [0 for",
        "cap_holds_while_jobs",
    ),
    Mutant(
        "the cost of a batch job is not settled",
        "job_tables.py",
        "settle(state, process, bound, spent, at))",
        "state)",
        "whenever_the_process_is_killed",
    ),
    Mutant(
        "a row that another run has in flight is put into a batch job",
        "building.py",
        "        if keys:",
        "        if None:",
        "concurrent_runs_submit",
    ),
    Mutant(
        "an answer is kept under the key of another image",
        "steps.py",
        "if prompt.reader is not None and key_of(text) != key:",
        "if None:",
        "changes_while",
    ),
    Mutant(
        "an image is sent that is not the one that was hashed",
        "media_reader.py",
        "if _digest(data) != digest:",
        "if None:",
        "images_are_sent_in_jobs",
    ),
    Mutant(
        "the cost of images is not reserved",
        "cost_tracker.py",
        "length += sum(map(self._media_tokens, call.shown_media))",
        "pass",
        "reservations_hold_the_cost",
    ),
    Mutant(
        "a row's text can name an image",
        "template_syntax.py",
        "else escape_marks(write_cell(value))",
        "else write_cell(value)",
        "row_text_cannot_name",
    ),
    Mutant("a path leads out of the root", "media_reader.py", "!= self._root:", "== None:", "path_outside_the_root"),
    Mutant(
        "one public address among a name's addresses is enough",
        "fetching.py",
        "if not all(",
        "if not any(",
        "dns_rebinding",
    ),
)


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    """The process that runs pytest in forked processes."""
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment["HYPOTHESIS_NO_PLUGINS"] = "1"  # trio's, which Selenium needs, is slow to import
    command = (sys.executable, "-P", str(ROOT / "tests/support/forked_pytest.py"))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as started:
        yield started


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_a_broken_law_is_noticed(mutant: Mutant, forking: subprocess.Popen[str], tmp_path: Path) -> None:
    """The selected tests fail on the mutant; they pass on the code as it is."""
    copy, output = tmp_path / "copy", tmp_path / "output"
    (file,) = (ROOT / "ondine_core").rglob(mutant.file)
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.good) == 1, f"{mutant.good!r} stands {text.count(mutant.good)} times in {mutant.file}"
    copy.mkdir()
    (copy / "tests").symlink_to(ROOT / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy)
    link_all_but(file, ROOT / "ondine_core", copy / "ondine_core")
    (copy / file.relative_to(ROOT)).write_text(text.replace(mutant.good, mutant.bad), encoding="utf-8")
    # Only the files that have such a test: collecting the others takes longer than running it.
    name = re.compile(rf"def test_\w*{mutant.law}")
    tests = [test for test in TESTS if name.search((ROOT / test).read_text(encoding="utf-8"))]
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", HYPOTHESIS, PROFILE, "-k", mutant.law, *tests]
    run = {"folder": str(copy), "arguments": arguments, "output": str(output)}
    assert forking.stdin is not None
    assert forking.stdout is not None
    forking.stdin.write(json.dumps(run) + "\n")
    forking.stdin.flush()
    assert int(forking.stdout.readline()) == CAUGHT, output.read_text(encoding="utf-8")[-4000:]


def link_all_but(file: Path, folder: Path, copy: Path) -> None:
    """Fill a copy of a folder with links to its files and folders, except to `file` and its byte code."""
    copy.mkdir()
    for one in folder.iterdir():
        if one in file.parents or one == file.parent / "__pycache__":
            link_all_but(file, one, copy / one.name)
        elif one != file and not one.name.startswith(f"{file.stem}."):
            (copy / one.name).symlink_to(one)
