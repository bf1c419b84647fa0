"""`python3 tests`: set up everything, lint, check types and run the tests. Arguments go to pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ci"))
from bootstrap import python, run

interpreter = python()
run(interpreter, "-m", "ruff", "check", ".")
run(interpreter, "-m", "ruff", "format", "--check", ".")
run(interpreter, "-m", "mypy")
run(interpreter, "-m", "pytest", *sys.argv[1:])
