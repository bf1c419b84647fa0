"""`python3 example_project`: set up everything and classify one day of product reviews through Dagster."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / ".ci"))
from bootstrap import python, run

run(python(), "-m", "example_project", *sys.argv[1:])
