"""A Dagster deployment of real loopback processes: code server and daemon, in a folder of its own.

User actions are GraphQL queries of the UI, executed without a webserver; results are read from the instance.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]
RARE_GC = str(Path(__file__).with_name("rare_gc"))
"""A folder for PYTHONPATH, with which processes of Dagster need a quarter less time."""
_START_TIMEOUT_S = 600.0
_END_TIMEOUT_S = 600.0
"""Long enough for any machine, because the speed of Dagster itself is not tested."""
_MIN_PAUSE_S = 0.1
_PAUSE_FACTOR = 10


def until(poll: Callable[[], T | None], within_s: float, what: str) -> T:
    """Call `poll` until its result is not `None`; each pause takes ten times as long as the poll before it."""
    started_at = polled_at = time.monotonic()
    while (found := poll()) is None:
        now = time.monotonic()
        assert now < started_at + within_s, f"No {what} within {within_s} s."
        time.sleep(max(_MIN_PAUSE_S, _PAUSE_FACTOR * (now - polled_at)))
        polled_at = time.monotonic()
    return found


def environment(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a process of Dagster whose instance is in the folder `home`."""
    modules = os.pathsep.join(filter(None, [RARE_GC, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": modules, **variables}


def free_port() -> int:
    """A port of 127.0.0.1 without a listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "XZ"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Deployment:
    """Dagster's processes, as a context manager; processes that still run at the end are killed.

    Args:
        home: The folder of the instance.
        module: The module of the definitions.
        settings: The content of `dagster.yaml`, in the JSON subset of YAML.
        variables: The environment of its processes.
        reloads: Whether the code server can reload the definitions, which takes a further process.
    """

    home: Path
    module: str
    settings: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    reloads: bool = False

    def __enter__(self) -> Self:
        (self.home / "dagster.yaml").write_text(json.dumps(self.settings), encoding="utf-8")
        self._environment = environment(self.home, self.variables)
        # Dagster's programs call others by name (celery); these are in this interpreter's folder.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._environment |= {"TEST_HOME": str(self.home), "PATH": path}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()
        self._stack.callback(self._stop)
        try:
            port = free_port()
            workspace = {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": "tests"}}
            file = self.home / "workspace.yaml"
            file.write_text(json.dumps({"load_from": [workspace]}), encoding="utf-8")
            server = ("code-server", "start") if self.reloads else ("api", "grpc")
            self.start("dagster", *server, "-h", "127.0.0.1", "-p", str(port), "-m", self.module)
            until(lambda: listens(port), _START_TIMEOUT_S, "code server")
            self.start("dagster-daemon", "run", "-w", str(file))
            self.instance = self._stack.enter_context(dg.DagsterInstance.from_config(str(self.home)))
            self._workspace = self._stack.enter_context(
                WorkspaceProcessContext(self.instance, WorkspaceFileTarget([str(file)]))
            )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, program: str, *arguments: str, home: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a further process of the deployment; with `home` it has an own folder, as on another machine."""
        command = [str(Path(sys.executable).parent / program), *arguments]
        variables = self._environment
        if home:
            home.mkdir()
            shutil.copy(self.home / "dagster.yaml", home)
            variables = variables | {"DAGSTER_HOME": str(home)}
        with (self.home / f"{program}.log").open("ab") as log:
            # In a group of its own, so that its children can be ended with it.
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self._processes:
            if _group_runs(process.pid):
                os.killpg(process.pid, 9)

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """The only field of a query's reply; an error fails the test."""
        from dagster_graphql.cli import execute_query

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Dagster, which are errors in tests
            response = execute_query(self._workspace, query, variables)
        assert not response.get("errors"), response
        (found,) = response["data"].values()
        assert isinstance(found, dict), response
        assert "Error" not in found["__typename"], found
        return found

    # -- user actions -------------------------------------------------------------------------------------------------

    def launch(self, asset: str, tags: Mapping[str, str] | None = None) -> str:
        """Materialize an asset; returns the run's id."""
        return self._launch({"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": [asset]}]}, tags)

    def launch_job(self, job: str, partition: str) -> str:
        """Launch a job for a partition; returns the run's id."""
        return self._launch({"pipelineName": job}, {"dagster/partition": partition})

    def _launch(self, what: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> str:
        selector = {"repositoryLocationName": "tests", "repositoryName": "__repository__", **what}
        given = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        found = self.graphql(
            """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
            ... on RunConfigValidationInvalid { errors { message } } } }""",
            params={"selector": selector, "mode": "default", "executionMetadata": {"tags": given}},
        )
        return str(found["run"]["runId"])

    def backfill(self, asset: str, partitions: Sequence[str]) -> str:
        """Materialize partitions of an asset; returns the backfill's id."""
        found = self.graphql(
            """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
            params={"assetSelection": [{"path": [asset]}], "partitionNames": partitions},
        )
        return str(found["backfillId"])

    def repeat_failed(self, backfill: str) -> str:
        """Materialize the failed partitions again; returns the id of the new backfill."""

        def repeat() -> dict[str, Any] | None:
            try:
                return self.graphql(
                    """mutation($params: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $params) {
                    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }""",
                    params={"parentRunId": backfill, "strategy": "FROM_FAILURE"},
                )
            except AssertionError as error:
                # The runs end shortly before the daemon updates the backfill.
                if "still in progress" not in str(error):
                    raise
                return None

        return str(until(repeat, _END_TIMEOUT_S, "new backfill")["backfillId"])

    def terminate(self, run: str) -> None:
        """Terminate the run as the UI does."""
        self.graphql(
            """mutation($run: String!) { terminateRun(runId: $run) {
            __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }""",
            run=run,
        )

    def reload(self) -> None:
        """Make the code server reload the definitions."""
        self.graphql("""mutation { reloadRepositoryLocation(repositoryLocationName: "tests") { __typename } }""")

    # -- results -----------------------------------------------------------------------------------------------------

    def finished(self, run: str, within_s: float = _END_TIMEOUT_S) -> dg.DagsterRun:
        """The run, once it has ended."""

        def finished_run() -> dg.DagsterRun | None:
            found = self.instance.get_run_by_id(run)
            return found if found and found.is_finished else None

        return until(finished_run, within_s, f"end of the run {run}")

    def finished_all(self, backfill: str, count: int, within_s: float) -> list[dg.DagsterRun]:
        """The runs of a backfill, once there are `count` and all have ended."""

        def finished_runs() -> list[dg.DagsterRun] | None:
            found = self.runs({"dagster/backfill": backfill})
            return found if len(found) == count and all(run.is_finished for run in found) else None

        return until(finished_runs, within_s, f"end of {count} runs")

    def runs(self, tags: Mapping[str, str]) -> list[dg.DagsterRun]:
        """The runs with these tags."""
        return list(self.instance.get_runs(dg.RunsFilter(tags=dict(tags))))

    def retry_of(self, run: str) -> str:
        """The run that Dagster launched after another had failed."""
        return until(
            lambda: next((one.run_id for one in self.runs({"dagster/parent_run_id": run})), None),
            _END_TIMEOUT_S,
            "automatic retry",
        )

    def failures(self, run: str) -> list[str]:
        """The errors of a run's failed steps."""
        events = self.instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
        return [str(event.dagster_event.step_failure_data.error) for event in events if event.dagster_event]

    def log(self, run: str) -> str:
        """All log messages of a run."""
        return "\n".join(event.user_message for event in self.instance.all_logs(run))

    def observed(self, asset: str, runs: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """The metadata of the last observation of each run."""
        found = self.instance.fetch_observations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return {
            record.run_id: {key: value.value for key, value in record.asset_observation.metadata.items()}
            for record in found
            if record.asset_observation and record.run_id in set(runs)
        }

    def materialized(self, asset: str) -> list[dg.AssetMaterialization]:
        """The materializations of the asset, in order."""
        found = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return [record.asset_materialization for record in found if record.asset_materialization]


def listens(port: int) -> bool | None:
    """Whether a server listens on the port."""
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0 or None


def _group_runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
