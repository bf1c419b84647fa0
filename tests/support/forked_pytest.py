"""Runs pytest in forked processes in which third-party packages are imported already, which takes longer than a test.

A script (`python -P tests/support/forked_pytest.py`) and not a module, because a run imports its own copy of this
repository's packages. Each line on standard input is a run in JSON: the folder in which it runs, pytest's arguments,
and the file for its output. The reply is a line with its exit status.
"""

import json
import os
import signal
import sys
from importlib import import_module

TIMEOUT_S = 600
# No package that starts a thread when it is imported, because a thread does not survive a fork.
IMPORTED = ("pytest", "hypothesis.stateful", "orjson", "pydantic", "aiohttp.web", "psycopg", "PIL.Image", "sqlite3")


def run_in_this_process(folder: str, arguments: list[str], output: str) -> int:
    """Run pytest as `python -m pytest` does; returns its exit status."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder
    for file, flags, target in ((os.devnull, os.O_RDONLY, 0), (output, os.O_WRONLY | os.O_CREAT, 1)):
        os.dup2(os.open(file, flags), target)
    os.dup2(1, 2)
    signal.alarm(TIMEOUT_S)
    return import_module("pytest").main(arguments)


def main() -> None:
    """Run each line of standard input in a forked process, one after the other."""
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        if process := os.fork():
            _, status = os.waitpid(process, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201  (it is the reply)
        else:
            sys.exit(run_in_this_process(**json.loads(line)))


if __name__ == "__main__":
    main()
