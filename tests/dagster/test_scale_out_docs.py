"""Every `dagster.yaml` of the guide is one that Dagster takes, launcher and all."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

GUIDE = Path(__file__).parents[2] / "docs" / "scale-out.md"
BLOCKS = re.findall(
    r"^```yaml\n# dagster\.yaml\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)
URL = "postgresql+psycopg2://me:secret@127.0.0.1:1/dagster"


def settings_of(block: str) -> dict[str, Any]:
    """A block without its storage, since Dagster would connect to it at once."""
    settings: dict[str, Any] = yaml.safe_load(block)
    return {"telemetry": {"enabled": False}, **settings}


def open_instance(home: Path, settings: dict[str, Any]) -> dg.DagsterInstance:
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return dg.DagsterInstance.from_config(str(home))


def test_the_guide_has_a_block_for_each_deployment() -> None:
    """Celery, Kubernetes, Docker, and the limits."""
    found = [settings_of(block).get("run_launcher", {}).get("class") for block in BLOCKS]
    assert found == ["CeleryRunLauncher", "K8sRunLauncher", "DockerRunLauncher", None]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: next(iter(yaml.safe_load(block))))
def test_settings_are_what_dagster_takes(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance opens, and its launcher is made with every setting of the block."""
    for name in ("DAGSTER_POSTGRES_URL", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, URL if "POSTGRES" in name else "redis://127.0.0.1:1/0")
    settings = settings_of(block)
    storage = settings.pop("storage", None)
    assert storage in (None, {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}})
    launcher = settings.get("run_launcher", {})
    if launcher.get("class") == "K8sRunLauncher":
        # The test is in no cluster.
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(KUBECONFIG), encoding="utf-8")
        launcher["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    with open_instance(tmp_path, settings) as instance:
        assert type(instance.run_launcher).__name__ == launcher.get("class", "DefaultRunLauncher")
        assert instance.run_monitoring_enabled


def test_limits_are_those_of_the_guide(tmp_path: Path) -> None:
    """Runs, a backfill's runs, and pools."""
    with open_instance(tmp_path, settings_of(BLOCKS[-1])) as instance:
        limits = instance.get_concurrency_config()
        assert limits.run_queue_config is not None
        assert limits.run_queue_config.max_concurrent_runs == 20
        (backfills,) = limits.run_queue_config.tag_concurrency_limits
        assert backfills["limit"] == 10
        assert limits.pool_config.default_pool_limit == 8
        assert instance.run_retries_enabled


def test_a_setting_that_dagster_does_not_know_is_refused(tmp_path: Path) -> None:
    """The checks above would find a slip."""
    settings = settings_of(BLOCKS[-1])
    settings["concurrency"]["runs"]["max_runs"] = 1
    with pytest.raises(dg.DagsterInvalidConfigError), open_instance(tmp_path, settings):
        pass


KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    "clusters": [{"name": "here", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "me", "user": {}}],
}
