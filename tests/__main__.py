"""`python3 tests`: set up everything, lint, check types and run the tests. Arguments go to pytest."""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ci"))
from bootstrap import ROOT, python, run

interpreter = python()
run(interpreter, "-m", "ruff", "check", ".")
run(interpreter, "-m", "ruff", "format", "--check", ".")
run(interpreter, "-m", "mypy")
if sys.argv[1:]:
    run(interpreter, "-m", "pytest", *sys.argv[1:])
    sys.exit()
# Environments for the packaging tests are mostly waited for, so they are made beside the other tests.
with tempfile.TemporaryFile() as told:
    packaging = subprocess.Popen(
        [interpreter, "-m", "pytest", "tests/packaging"], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT
    )
    try:
        run(interpreter, "-m", "pytest", "--ignore=tests/packaging")
    finally:
        failed = packaging.wait()
        told.seek(0)
        sys.stdout.write(told.read().decode(errors="replace"))
sys.exit(failed)
