"""Docker's daemon and Kubernetes' API server on the loopback, with the requests that Dagster's run launchers send.

A container is a process of this machine with the container's command and exactly the variables requested for it: a
variable that the guide's example omits is missing here as it would be in a container.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.deployment import REPOSITORY


class ContainerHost:
    """The server, as a context manager; processes that still run at the end are killed.

    Args:
        home: The folder that is mounted as `DAGSTER_HOME` in containers; it also gets their logs.
        secrets: Kubernetes' secrets by name.

    Attributes:
        containers: The requested containers, in the format of Docker or Kubernetes.
    """

    def __init__(self, home: Path, secrets: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._home, self._secrets = home, secrets or {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.containers: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="containers")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.wait()

    def log(self) -> str:
        """The output of the containers."""
        return "\n".join(file.read_text(encoding="utf-8") for file in sorted(self._home.glob("container-*.log")))

    def reply(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of the reply to a request."""
        match method, path.partition("?")[0].split("/")[1:]:
            case "GET", ["version"]:
                return 200, {"ApiVersion": "1.44"}
            case "POST", [_, "containers", "create"]:
                self.containers.append(body)
                return 201, {"Id": str(len(self.containers) - 1), "Warnings": []}
            case "GET", [_, "containers", number, "json"]:
                return 200, {"Id": number, "State": {"Status": "running"}}
            case "POST", [_, "containers", number, "start"]:
                container = self.containers[int(number)]
                self._run(container["Cmd"], dict(entry.split("=", 1) for entry in container["Env"]))
                return 204, None
            case "POST", ["apis", "batch", "v1", "namespaces", _, "jobs"]:
                (container,) = body["spec"]["template"]["spec"]["containers"]
                self.containers.append(body)
                self._run(container["args"], self._variables_of_pod(container))
                return 201, body
        return 404, {"message": f"{method} {path}"}

    def _variables_of_pod(self, container: Mapping[str, Any]) -> dict[str, str]:
        variables = {}
        for source in container.get("envFrom") or []:
            variables |= self._secrets[source["secretRef"]["name"]]
        for entry in container.get("env") or []:
            wanted = entry.get("valueFrom", {}).get("secretKeyRef")
            variables[entry["name"]] = self._secrets[wanted["name"]][wanted["key"]] if wanted else entry["value"]
        if "DAGSTER_HOME" in variables:
            variables["DAGSTER_HOME"] = str(self._home)
        return variables

    def _run(self, command: list[str], variables: Mapping[str, str]) -> None:
        # An image provides the programs that are in this interpreter's folder, and a home folder.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        image = {"PATH": path, "HOME": str(self._home)}
        with (self._home / f"container-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=image | dict(variables), stdout=log, stderr=log)
        self._processes.append(process)


def _handler(host: ContainerHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = host.reply(self.command, self.path, json.loads(content or b"{}"))
            reply = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = handle_request  # noqa: N815  (the server calls methods of these names)
        do_POST = handle_request  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler
