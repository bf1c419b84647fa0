"""Runs the tests on every Python that is here, with the oldest and the newest dependencies that pyproject.toml allows.

`python3 .ci/matrix.py`, or with arguments for pytest: `python3 .ci/matrix.py tests/core -x`. The environments stay in
`.matrix/`. Needs `uv`. The tools of the tests themselves are always the newest that go with the dependencies.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "pyproject.toml"
VERSIONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = ("oldest", "newest")


def find_pythons() -> dict[str, str]:
    """The interpreter of each version that is here: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for version in VERSIONS:
        for candidate in (f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))):
            asked = [
                candidate,
                "-c",
                "import sys; print(sys.version.startswith(sys.argv[1]) and sys.executable)",
                version,
            ]
            try:
                said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
            except (OSError, subprocess.CalledProcessError):  # not there, or a shim of pyenv's that leads nowhere
                continue
            if said != "False":
                found[version] = said
                break
    return found


def make_environment(folder: Path, python: str, *, oldest: bool) -> str:
    """The interpreter of a new environment with the project, `local` and the tools of its tests."""
    interpreter = str(folder / "bin" / "python")
    uv("venv", "--clear", "--python", python, str(folder))
    packages = ["-e", f"{ROOT}[local]", "-e", str(ROOT / "example_project"), "--group", f"{MANIFEST}:dev"]
    if oldest:
        lowest = uv("pip", "compile", "--resolution", "lowest-direct", "--python", interpreter, str(MANIFEST))
        # What these need in turn is left free, so that the tools of the tests find versions that go with them.
        direct = [
            re.split(r"[^\w-]", text)[0] for text in tomllib.loads(MANIFEST.read_text())["project"]["dependencies"]
        ]
        bounds = folder.parent / f"{folder.name}.txt"
        bounds.write_text("".join(f"{line}\n" for line in lowest.splitlines() if line.partition("==")[0] in direct))
        packages += ["-c", str(bounds)]
    uv("pip", "install", "--python", interpreter, *packages)
    return interpreter


def uv(*arguments: str) -> str:
    """What `uv` prints, in silence unless it fails."""
    return subprocess.run(["uv", *arguments, "--quiet"], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout  # noqa: S607


def main() -> None:
    """Every environment in turn; leave with 1 if the tests failed in any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", choices=VERSIONS, help="only this version")
    parser.add_argument("--resolution", choices=RESOLUTIONS, help="only these dependencies")
    options, arguments = parser.parse_known_args()
    (ROOT / ".matrix").mkdir(exist_ok=True)
    pythons = find_pythons()
    results = {}
    for version in [options.python] if options.python else VERSIONS:
        for resolution in [options.resolution] if options.resolution else RESOLUTIONS:
            cell = f"Python {version}, {resolution}"
            if version not in pythons:
                results[cell] = "not here"
                continue
            print(f"== {cell}", flush=True)
            folder = ROOT / ".matrix" / f"{version}-{resolution}"
            interpreter = make_environment(folder, pythons[version], oldest=resolution == "oldest")
            # Old packages warn of what new Pythons deprecate, and nobody will mend that.
            lenient = ["-W", "default"] if resolution == "oldest" else []
            ended = subprocess.run([interpreter, "-m", "pytest", "-q", *lenient, *arguments], check=False, cwd=ROOT)
            results[cell] = "failed" if ended.returncode else "passed"
    for cell, result in results.items():
        print(f"{cell}: {result}")
    sys.exit("failed" in results.values())


if __name__ == "__main__":
    main()
