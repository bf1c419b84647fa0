"""Settings that every test shares."""

import os

from hypothesis import HealthCheck, Phase, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# Where it matters that a test fails, and not on which smallest example.
settings.register_profile("first-find", deadline=None, phases=[Phase.explicit, Phase.generate])

# No test may need the internet: neither Dagster's telemetry nor litellm's price list.
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ.pop("DAGSTER_HOME", None)
for key in [name for name in os.environ if name.endswith("_API_KEY") or name.startswith("ONDINE_")]:
    del os.environ[key]
