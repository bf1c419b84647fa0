from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers.comparison import Client, Figures, PeerScale, clients, compare_peers, peers_table
from tests.benchmarks.peers.job import Job
from tests.benchmarks.workload import answer_to

SCALE = PeerScale(rows=200, few_rows=100, repetitions=2)
PYTHON = Path("python")
RUN = {
    "version": "1.2",
    "rows_per_s": 900.0,
    "cpu_ms_per_row": 0.25,
    "peak_rss_mib": 40.0,
    "lost": 0,
    "calls": 100,
    "paid_again": 61,
}


def figures(**changes: object) -> Figures:
    """A run of each situation."""
    found = Figures()
    for situation in ("speed", "duplicates", "changed", "refused", "killed"):
        found.add(situation, {**RUN, **changes})
    return found


def test_the_table_has_a_line_for_each_client() -> None:
    """Rates are medians of the runs, shown with their ratio to the bare loop."""
    found = figures(rows_per_s=300.0, calls=50, paid_again=7)
    found.add("speed", {**RUN, "rows_per_s": 600.0})
    table = peers_table(
        [Client("aiohttp", PYTHON), Client("peer", PYTHON)], {"aiohttp": figures(), "peer": found}, SCALE
    )
    lines = table.splitlines()
    assert "calls for 100 rows, 50 different" in lines[0]
    assert lines[2] == "| aiohttp 1.2 | 900 | 1.00 | 0.25 | 40 | 100 | 100 | 900 | 0 | 61 |"
    assert lines[3] == "| peer 1.2 | 450 | 0.50 | 0.25 | 40 | 50 | 50 | 300 | 0 | 7 |"


def test_a_stale_answer_and_a_failure_are_shown() -> None:
    """A changed row with its old answer is marked, and a failed situation has its reason."""
    stale, broken = figures(lost=1, calls=0), Figures()
    broken.add("refused", "RateLimitError: 429")
    found = [Client("stale", PYTHON), Client("broken", PYTHON)]
    table = peers_table(found, {"stale": stale, "broken": broken}, SCALE)
    assert "| 0, with the old row |" in table
    assert table.endswith("- broken failed (refused): RateLimitError: 429")
    assert "| broken | - | - | - | - | - | - | failed | failed | - |" in table


def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(tmp_path: Path) -> None:
    """It has no measurements; the other clients are measured."""
    found = list(clients(tmp_path, {"peer": ["/no/such/place/peer-1-py3-none-any.whl"]}))
    assert [client.name for client in found] == ["aiohttp", "Ondine", "peer"]
    assert list(compare_peers(found[2:], SCALE)) == []
    table = peers_table(found[2:], {}, SCALE)
    assert "- peer is left out because it cannot be installed: " in table
    assert "/no/such/place" in table


def test_a_client_is_measured(tmp_path: Path) -> None:
    """The bare loop asks each row once in each run, also after one row has changed; no row is lost."""
    scale = PeerScale(rows=20, few_rows=20, repetitions=1)
    (found, *_) = clients(tmp_path, {})
    runs = [run for _, _, run in compare_peers([found], scale, ["changed"])]
    assert [(run["calls"], run["lost"], run["wrong"]) for run in runs if isinstance(run, dict)] == [(20, 0, 0)]


def test_duplicates_of_a_job_are_far_apart() -> None:
    """No text repeats before all have occurred once; a changed row is the last."""
    job = Job("", 6, distinct=3)
    assert job.numbers == [0, 1, 2, 0, 1, 2]
    assert Job("", 3, changed=True).numbers == [0, 1, 3]
    answers = [answer_to(f"#{number}") for number in job.numbers]
    assert job.count_lost_and_wrong(answers) == (0, 0)
    assert job.count_lost_and_wrong([None, answers[2], *answers[2:]]) == (1, 1)
