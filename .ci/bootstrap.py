"""Makes the virtual environment of this checkout, for the commands in the README: nothing but Python 3.11 is needed.

Runs on the machine's own Python, before anything is installed, so it may import the standard library only.
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
    """The interpreter of the environment (`.venv`, or where ONDINE_VENV says), which is made and kept up to date."""
    if sys.version_info < (3, 11):  # noqa: UP036  (the very point)
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
    """Run `command` in the checkout and leave with its exit code if it fails."""
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def _install(venv: Path, interpreter: Path) -> None:
    """Make the environment with uv, or with pip, which takes several times the CPU time, if uv cannot install it.

    The latter is so where pip is configured for a package index that uv does not know.
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
        print("uv cannot install this; pip does it, in a few minutes ...", flush=True)
        run(*pip, *_PACKAGES, *_GROUP)
