"""A project that `create-dagster` makes and the quickstart fills, with its own environment, webserver and daemon."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import __version__ as dagster_version

from tests.support.deployment import RARE_GC, free_port, until
from tests.support.distributions import ROOT, Distributions
from tests.support.pythons import uv

_BLOCKS = re.compile(r'^```(console|python title="([^"]+)")\n(.*?)^```', re.DOTALL | re.MULTILINE)
_VARIABLES = {"PATH", "HOME", "LANG", "SSL_CERT_FILE", "XDG_CACHE_HOME", "TMPDIR", "PYENV_ROOT"}
_START_TIMEOUT_S, _WAIT_TIMEOUT_S = 600, 300
"""Long enough for any machine, because the speed of Dagster's start-up is not tested."""
_END_TIMEOUT_S = 30
_SHARE_BYTECODE = (
    "import pathlib, sys; from tests.support.pythons import share_bytecode; share_bytecode(pathlib.Path(sys.argv[1]))"
)
_LAUNCH = """mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } }
}"""
_BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_IN_PROCESS = {"execution": {"config": {"in_process": {}}}}
"""A run config whose steps have no processes of their own."""
_STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_TAGGED = """query ($tag: ExecutionTag!) { runsOrError(filter: {tags: [$tag]}) {
  ... on Runs { results { runId status } } } }"""
_LOCATIONS = "{workspaceOrError {... on Workspace {locationEntries {name loadStatus}}}}"


@dataclass
class Shop:
    """The project.

    Args:
        folder: The project's folder.
        page: The text of the quickstart with the changes of `follow_quickstart`.
        output: The output of the quickstart's commands.
        environment: The environment variables of every command.
    """

    folder: Path
    page: str
    output: str
    environment: Mapping[str, str]
    address: str = ""

    @property
    def home(self) -> Path:
        """The folder of the Dagster instance."""
        return self.folder / ".dagster_home"

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command in the project and return its output."""
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == status, ended.stdout
        return ended.stdout

    def run_python(self, code: str, *, terminal: bool = False) -> str:
        """Run Python code in the project, with or without a terminal, and return its output."""
        command = [str(self.folder / ".venv/bin/python"), "-c", code]
        if terminal:
            spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"
            command = [sys.executable, "-c", spawn, *command]
        return self.run(*command)

    def serve(self) -> subprocess.Popen[bytes]:
        """Start `dg dev`, a webserver and a daemon, and wait until the definitions are loaded."""
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        with (self.folder / "dev.log").open("wb") as log:
            server = subprocess.Popen(
                ["uv", "run", "dg", "dev", "--host", "127.0.0.1", "--port", str(port)],  # noqa: S607
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its children can be ended with it
            )
        try:
            until(self._is_loaded, _START_TIMEOUT_S, f"dg dev, see {self.folder / 'dev.log'},")
        except BaseException:
            end(server)
            raise
        return server

    def _is_loaded(self) -> bool | None:
        try:
            found = self.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        except OSError:
            return None
        return [(one["name"], one["loadStatus"]) for one in found] == [("shop", "LOADED")] or None

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The reply of Dagster's GraphQL interface, which the UI uses as well."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310  (our own server)
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310  (our own server)
            found: dict[str, Any] = json.load(reply)["data"]
            return found

    def launch(
        self, *assets: str, config: Mapping[str, Any] | None = None, partition: str = "", in_process: bool = True
    ) -> str:
        """Launch a run of assets; returns its id.

        Args:
            assets: Names of the assets.
            config: The run config of the first asset.
            partition: The partition to materialize, if the assets have partitions.
            in_process: Whether the steps run in the process of the run.
        """
        selector = {
            "repositoryLocationName": "shop",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [name]} for name in assets],
        }
        given: dict[str, Any] = {"ops": {assets[0]: {"config": dict(config)}}} if config else {}
        if in_process:
            given |= _IN_PROCESS
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {
            "selector": selector,
            "runConfigData": given,
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        launched = self.ask(_LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def materialize(self, *assets: str, config: Mapping[str, Any] | None = None, partition: str = "") -> str:
        """Launch a run of assets and wait until it succeeds; returns its id."""
        run = self.launch(*assets, config=config, partition=partition)
        self.wait_for_end(run)
        return run

    def wait_for_end(self, run: str, status: str = "SUCCESS") -> None:
        """Wait until a run ends, and assert that it ends with this status."""

        def ended() -> str | None:
            found = str(self.ask(_STATUS, id=run)["runOrError"]["status"])
            return found if found in {"SUCCESS", "FAILURE", "CANCELED"} else None

        assert until(ended, _WAIT_TIMEOUT_S, f"end of the run {run}") == status

    def backfill(self, asset: str, *partitions: str) -> list[str]:
        """Materialize partitions of an asset by a backfill; returns the ids of its runs."""
        params = {
            "assetSelection": [{"path": [asset]}],
            "partitionNames": partitions,
            "runConfigData": _IN_PROCESS,
        }
        backfill = self.ask(_BACKFILL, params=params)["launchPartitionBackfill"]["backfillId"]
        tag = {"key": "dagster/backfill", "value": backfill}

        def runs() -> list[str] | None:
            found = self.runs(tag)
            return list(found) if len(found) == len(partitions) and set(found.values()) == {"SUCCESS"} else None

        return until(runs, _WAIT_TIMEOUT_S, f"end of {len(partitions)} runs of the backfill")

    def runs(self, tag: Mapping[str, str]) -> dict[str, str]:
        """The ids of the runs with a tag, and their status."""
        return {one["runId"]: one["status"] for one in self.ask(_TAGGED, tag=tag)["runsOrError"]["results"]}


def follow_quickstart(
    distributions: Distributions, folder: Path, variables: Mapping[str, str], *, runs: bool = True
) -> Shop:
    """Run the quickstart's commands in an empty folder, or only those that make the project if not `runs`.

    Four things differ from the page: the wheel is the one just built, `create-dagster` has the version of the
    installed Dagster, the project's environment shares this one's bytecode, and garbage collection is rare.
    """
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    wheel = shlex.quote(f"ondine-dagster[local] @ {distributions.wheel.as_uri()}")
    shop = folder / "shop"
    share = shlex.join([sys.executable, "-c", _SHARE_BYTECODE, str(shop / ".venv")])
    changes = {
        "create-dagster@latest": f"create-dagster@{dagster_version}",
        "'ondine-dagster[local]'": wheel,
        "$ uv run dg check defs": f"$ (cd {shlex.quote(str(ROOT))} && {share})\n$ uv run dg check defs",
    }
    for old, new in changes.items():
        assert page.count(old) == 1
        page = page.replace(old, new)
    environment = {name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith("UV_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": RARE_GC,
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DAGSTER_HOME": str(shop / ".dagster_home"),
        **variables,
    }
    folder.mkdir(exist_ok=True)
    outside = Shop(folder, page, "", {name: value for name, value in environment.items() if name != "DAGSTER_HOME"})
    lines = [line for line in _script(page) if runs or not line.startswith("uv run ")]
    output = outside.run("bash", "-c", "\n".join(lines))
    return Shop(shop, page, output, environment)


def _script(page: str) -> list[str]:
    """The lines of a shell script that writes the files of a page and runs its commands in order."""
    lines = ["set -euxo pipefail"]
    for _, file, text in _BLOCKS.findall(page):
        if file:
            lines += [f"mkdir -p {Path(file).parent}", f"cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE"]
        else:
            lines += [line.removeprefix("$ ") for line in text.splitlines()]
            assert all(line.startswith("$ ") for line in text.splitlines()), text
    return lines


def add_assets(shop: Shop) -> None:
    """Add the assets for tests of the UI to the project, and Pillow, which draws thumbnails, to its environment."""
    shutil.copy(ROOT / "tests/support/shop_assets.py", shop.folder / "src/shop/defs/tickets.py")
    uv("pip", "install", "--python", shop.folder / ".venv", "pillow")
    settings = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
    (shop.home / "dagster.yaml").write_text(settings, encoding="utf-8")


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server and its children."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_END_TIMEOUT_S)
