"""Settings that every test shares."""

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# Where it matters that a test fails, and not on which smallest example.
settings.register_profile("first-find", deadline=None, phases=[Phase.explicit, Phase.generate])

# Dozens of processes import the same packages; compiling them anew takes longer than the rest of the import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that runs this in the background has SIGINT ignored, Dagster copies that to SIGTERM, and children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may need the internet: neither Dagster's telemetry nor litellm's price list.
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ.pop("DAGSTER_HOME", None)
for key in [name for name in os.environ if name.endswith("_API_KEY") or name.startswith("ONDINE_")]:
    del os.environ[key]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: with several processes, a long one at the end would be waited for alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
