"""Dagster accepts every `dagster.yaml` of the guide, and containers get what their runs need.

The recipe for Celery is executed in `test_scale_out.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from tests.support.container_project import ROWS, build_job
from tests.support.containers import ContainerHost
from tests.support.deployment import until
from tests.support.guide import blocks
from tests.support.ledger import look
from tests.support.postgres import server
from tests.support.provider import Provider

BLOCKS = blocks("yaml", "# dagster.yaml\n")
URL = "postgresql+psycopg2://me:secret@127.0.0.1:1/dagster"


def settings_of(block: str) -> dict[str, Any]:
    """A block without its storage, to which Dagster would connect at once."""
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
def test_dagster_accepts_the_settings(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance opens, and its launcher is made with every setting of the block."""
    for name in ("DAGSTER_POSTGRES_URL", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, URL if "POSTGRES" in name else "redis://127.0.0.1:1/0")
    settings = settings_of(block)
    storage = settings.pop("storage", None)
    assert storage in (None, {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}})
    launcher = settings.get("run_launcher", {})
    if launcher.get("class") == "K8sRunLauncher":
        launcher["config"] |= out_of_cluster(tmp_path, "https://127.0.0.1:1")
    with open_instance(tmp_path, settings) as instance:
        assert type(instance.run_launcher).__name__ == launcher.get("class", "DefaultRunLauncher")
        assert instance.run_monitoring_enabled


def test_limits_are_those_of_the_guide(tmp_path: Path) -> None:
    """For runs, runs of a backfill, and pools."""
    with open_instance(tmp_path, settings_of(BLOCKS[-1])) as instance:
        limits = instance.get_concurrency_config()
        assert limits.run_queue_config is not None
        assert limits.run_queue_config.max_concurrent_runs == 20
        (backfills,) = limits.run_queue_config.tag_concurrency_limits
        assert backfills["limit"] == 10
        assert limits.pool_config.default_pool_limit == 8
        assert instance.run_retries_enabled


def test_a_setting_that_dagster_does_not_know_is_refused(tmp_path: Path) -> None:
    """So the tests above would find a mistake."""
    settings = settings_of(BLOCKS[-1])
    settings["concurrency"]["runs"]["max_runs"] = 1
    with pytest.raises(dg.DagsterInvalidConfigError), open_instance(tmp_path, settings):
        pass


@pytest.mark.slow
def test_docker_container_has_what_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With only the recipe's variables a run reaches storage, store and model."""
    variables = variables_of_a_deployment()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with ContainerHost(tmp_path) as host:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{host.address}")
        with ran(tmp_path, settings_of(BLOCKS[2]), host) as provider:
            assert_all_answered(provider, variables)
        (container,) = host.containers
        assert container["Image"] == "etl:2026-11-23"
        assert container["HostConfig"]["NetworkMode"] == "dagster"


@pytest.mark.slow
def test_kubernetes_pod_has_what_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With only the recipe's secret a run reaches storage, store and model."""
    secret = variables_of_a_deployment()
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    with ContainerHost(tmp_path, {"ondine": secret}) as host:
        settings = settings_of(BLOCKS[1])
        settings["run_launcher"]["config"] |= out_of_cluster(tmp_path, f"http://{host.address}")
        with ran(tmp_path, settings, host) as provider:
            assert_all_answered(provider, secret)
        pod = host.containers[0]["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == "dagster"
        assert pod["terminationGracePeriodSeconds"] == 30


def variables_of_a_deployment() -> dict[str, str]:
    """The variables that the guide sets for the daemon or in the secret, with databases of their own."""
    return {
        "DAGSTER_POSTGRES_URL": server().new_database().replace("://", "+psycopg2://"),
        "ONDINE_STORE": server().new_database(),
        "OPENAI_API_KEY": "a key",
    }


@contextmanager
def ran(home: Path, settings: dict[str, Any], host: ContainerHost) -> Iterator[Provider]:
    """The provider that a successful run used, which the launcher of `settings` started."""
    job = dg.reconstructable(build_job)
    with Provider() as provider, open_instance(home, settings) as instance:
        llm = {
            "model": "openai_compatible/test",
            "base_url": provider.base_url,
            "api_key": {"env": "OPENAI_API_KEY"},
            "store": {"env": "ONDINE_STORE"},
        }
        run = instance.create_run_for_job(
            job.get_definition(),
            run_config={"resources": {"llm": {"config": llm}}},
            job_code_origin=job.get_python_origin(),
        )
        instance.launch_run(run.run_id, workspace=None)  # type: ignore[arg-type]  # launchers do not look at it

        def look_at_run() -> dg.DagsterRun | None:
            found = instance.get_run_by_id(run.run_id)
            return found if found and found.is_finished else None

        ended = until(look_at_run, 120, "end of the run")
        assert ended.status == dg.DagsterRunStatus.SUCCESS, host.log()
        yield provider


def assert_all_answered(provider: Provider, variables: dict[str, str]) -> None:
    """Each row was asked once, with the key, and its answer is in the shared store."""
    assert set(provider.ledger.billed_by_prompt.values()) == {1}
    assert len(provider.ledger.billed_by_prompt) == len(ROWS)
    assert {asked.headers["Authorization"] for asked in provider.ledger.requests} == {"Bearer a key"}
    assert look(variables["ONDINE_STORE"], "SELECT count(*) FROM ondine.answers") == [(len(ROWS),)]


def out_of_cluster(folder: Path, address: str) -> dict[str, Any]:
    """Launcher settings for use outside a cluster, in place of `load_incluster_config`."""
    kubeconfig = folder / "kubeconfig"
    cluster = {"name": "here", "cluster": {"server": address}}
    kubeconfig.write_text(yaml.safe_dump({**KUBECONFIG, "clusters": [cluster]}), encoding="utf-8")
    return {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}


KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    "users": [{"name": "me", "user": {}}],
}
