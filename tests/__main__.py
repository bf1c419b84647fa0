"""`python3 tests`: set up everything, lint, check types and run the tests. Arguments go to pytest."""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ci"))
from bootstrap import ROOT, python, run

interpreter = python()
pytest = (interpreter, "-m", "pytest")
checks = ((interpreter, "-m", "ruff", "check", "."), (interpreter, "-m", "ruff", "format", "--check", "."))
types = (interpreter, "-m", "mypy")
if sys.argv[1:]:
    for command in (*checks, types, (*pytest, *sys.argv[1:])):
        run(*command)
    sys.exit()
for command in checks:
    run(*command)
# The slow ones mostly wait (for downloads, daemons, a browser), so they run beside the others.
with tempfile.TemporaryFile() as told:
    slow = subprocess.Popen((*pytest, "-m", "slow"), cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
    try:
        run(*types)
        run(*pytest, "-m", "not slow")
    finally:
        failed = slow.wait()
        told.seek(0)
        sys.stdout.write(told.read().decode(errors="replace"))
sys.exit(failed)
