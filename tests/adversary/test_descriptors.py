"""A process with few file descriptors that is asked for thousands of concurrent calls."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.provider import Provider

_CHILD = """
import json, resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from ondine_core import ModelSpec, Options, Policy, enrich_sync

model = ModelSpec("openai_compatible/m", base_url=sys.argv[1])
rows = {"text": [f"row {number}" for number in range(3000)]}
options = Options(policy=Policy(max_concurrency=5000))
report = enrich_sync(rows, prompt="Repeat: {text}", output={"answer": "string"}, model=model, options=options)
print(json.dumps([sorted({error for error in report.errors() if error}), report.spend.calls]))
"""


@pytest.mark.parametrize("limit", [256, 1024])
def test_low_descriptor_limit_reduces_concurrency_without_failures(limit: int) -> None:
    """With a low `ulimit -n` concurrency falls to the available descriptors, and no row fails."""
    with Provider(latency_s=0.02) as provider:
        command = [sys.executable, "-c", _CHILD, provider.base_url, str(limit)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        peak = provider.ledger.peak_in_flight
    errors, calls = json.loads(ended.stdout)
    assert errors == []
    assert calls == 3000
    assert peak <= limit // 2
