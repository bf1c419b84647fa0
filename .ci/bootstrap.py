"""Make the virtual environment of this checkout, for the commands in the README; only Python 3.11 is required.

It runs on the machine's own Python before any package is installed, so it imports only the standard library.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MANIFESTS = (ROOT / "pyproject.toml", ROOT / "example_project" / "pyproject.toml")
_PACKAGES = ("-e", f"{ROOT}[local]", "-e", str(ROOT / "example_project"))
_GROUP = ("--group", f"{ROOT / 'pyproject.toml'}:dev")


def python() -> str:
    """Make or update the environment (`.venv`, or the folder in ONDINE_VENV); returns its interpreter."""
    if sys.version_info < (3, 11):  # noqa: UP036  (an older Python may run this file)
        sys.exit(f"Ondine needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try python3.12, for instance.")
    venv = Path(os.environ.get("ONDINE_VENV") or ROOT / ".venv")
    interpreter = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = venv / "ondine-installed"
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in _MANIFESTS)).hexdigest()
    if not (interpreter.exists() and stamp.exists() and stamp.read_text() == wanted):
        print(f"Setting up {venv} (a minute or two, once) ...", flush=True)
        _install(venv, interpreter)
        stamp.write_text(wanted)
    return str(interpreter)


def run(*command: str, **variables: str) -> None:
    """Run `command` in the checkout; if it fails, exit with its exit code."""
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def _install(venv: Path, interpreter: Path) -> None:
    """Make the environment with uv, or with pip if uv cannot install the packages.

    uv cannot if only pip is configured for the machine's package index. pip takes several times the CPU time.
    """
    if uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(venv))
        run(uv, "pip", "install", "--quiet", "--python", str(interpreter), *_PACKAGES, *_GROUP)
        return
    made = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit(f"Cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv.\n{made.stderr}")
    pip = (str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--upgrade", "uv", "pip>=25.1")  # the first pip that knows dependency groups
    own_uv = (str(interpreter), "-m", "uv", "pip", "install", "--quiet", "--python", str(interpreter))
    if subprocess.run([*own_uv, *_PACKAGES, *_GROUP], check=False).returncode:
        print("uv cannot install the packages; installing them with pip, which takes a few minutes ...", flush=True)
        run(*pip, *_PACKAGES, *_GROUP)
