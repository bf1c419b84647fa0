"""`python3 tests`: set up everything, lint, check types and run the tests. Arguments go to pytest."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ci"))
from bootstrap import ROOT, python, run

# Dozens of processes import the same packages; compiling them again takes longer than the rest of the import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
interpreter = python()
pytest = (interpreter, "-m", "pytest")
ruff = (interpreter, "-m", "ruff")
types = (interpreter, "-m", "mypy")
# Two processes more than processors, because many tests wait for daemons, downloads or a browser; four more are slower.
parallel = ("-n", str((os.cpu_count() or 1) + 2), "--dist", "loadfile", "--no-loadscope-reorder", "-q")
for command in ((*ruff, "check", "."), (*ruff, "format", "--check", ".")):
    run(*command)
if sys.argv[1:]:
    run(*types)
    run(*pytest, *sys.argv[1:])
    sys.exit()
with tempfile.TemporaryFile() as output:
    checking = subprocess.Popen(types, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        if not (ROOT / "tests" / "__pycache__").exists():
            # Compiles the tests and what they import, once; each test process would do so, in 15 CPU seconds.
            subprocess.run([*pytest, "--collect-only", "-q"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        run(*pytest, *parallel)
    finally:
        failed = checking.wait()
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
sys.exit(failed)
