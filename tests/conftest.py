"""Settings of all tests."""

import gc
import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

# The duration of an example depends more on the machine than on the code.
settings.register_profile("no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-deadline")
# For tests of mutants, which need a failing example but not the smallest one.
settings.register_profile("first-find", deadline=None, phases=[Phase.explicit, Phase.generate])

# Dozens of processes import the same packages; compiling them again takes longer than the rest of the import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Searching for unreachable cycles as often as by default takes a tenth of the time of the tests.
gc.set_threshold(10_000, 20, 50)

# A shell that runs the tests in the background ignores SIGINT; Dagster copies that to SIGTERM, and children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may need the internet: neither Dagster's telemetry nor litellm's price list.
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ.pop("DAGSTER_HOME", None)
for key in [name for name in os.environ if name.endswith("_API_KEY") or name.startswith("ONDINE_")]:
    del os.environ[key]


def pytest_collection_finish() -> None:
    """Exempt what is imported and collected from the collections that tests and pytest request: 0.4 s for each."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that with several processes none is left running alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
