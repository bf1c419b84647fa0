"""Runs the tests on every Python that is here, with the oldest and the newest dependencies that pyproject.toml allows.

`python3 -m tests.matrix`, or with arguments for pytest: `python3 -m tests.matrix tests/core -x`. The environments stay
in `.matrix/`. Needs `uv`. The tools of the tests themselves are always the newest that go with the dependencies.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.pythons import ENVIRONMENT, VERSIONS, find_pythons, make_environment, uv

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "pyproject.toml"
RESOLUTIONS = ("oldest", "newest")


def install(folder: Path, interpreter: str, *, oldest: bool) -> None:
    """The project, `local` and the tools of its tests."""
    packages: list[str | Path] = ["-e", f"{ROOT}[local]", "-e", ROOT / "example_project", "--group", f"{MANIFEST}:dev"]
    if oldest:
        lowest = uv("pip", "compile", "--resolution", "lowest-direct", "--python", interpreter, MANIFEST)
        # What these need in turn is left free, so that the tools of the tests find versions that go with them.
        direct = [
            re.split(r"[^\w-]", text)[0] for text in tomllib.loads(MANIFEST.read_text())["project"]["dependencies"]
        ]
        bounds = folder.with_name(f"{folder.name}.txt")
        bounds.write_text("".join(f"{line}\n" for line in lowest.splitlines() if line.partition("==")[0] in direct))
        packages += ["-c", bounds]
    uv("pip", "install", "--python", interpreter, *packages)


def run(version: str, resolution: str, arguments: list[str]) -> str:
    """How the tests ended in one environment."""
    if version not in find_pythons():
        return "not here"
    folder = ROOT / ".matrix" / f"{version}-{resolution}"
    interpreter = make_environment(folder, find_pythons()[version])
    install(folder, interpreter, oldest=resolution == "oldest")
    # Old packages warn of what new Pythons deprecate, and nobody will mend that.
    lenient = ["-W", "default"] if resolution == "oldest" else []
    command = [interpreter, "-m", "pytest", "-q", *lenient, *arguments]
    wheel = {ENVIRONMENT: f"{version} {'lowest-direct' if resolution == 'oldest' else 'highest'}"}
    ended = subprocess.run(command, check=False, cwd=ROOT, env=os.environ | wheel)
    return "failed" if ended.returncode else "passed"


def main() -> None:
    """Every environment in turn; leave with 1 if the tests failed in any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", choices=VERSIONS, help="only this version")
    parser.add_argument("--resolution", choices=RESOLUTIONS, help="only these dependencies")
    options, arguments = parser.parse_known_args()
    (ROOT / ".matrix").mkdir(exist_ok=True)
    results = {}
    for version in [options.python] if options.python else VERSIONS:
        for resolution in [options.resolution] if options.resolution else RESOLUTIONS:
            print(f"== Python {version}, {resolution} dependencies", flush=True)  # noqa: T201
            results[version, resolution] = run(version, resolution, arguments)
    for (version, resolution), result in results.items():
        print(f"Python {version}, {resolution} dependencies: {result}")  # noqa: T201
    sys.exit("failed" in results.values())


if __name__ == "__main__":
    main()
