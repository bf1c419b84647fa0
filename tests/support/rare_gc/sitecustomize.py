"""Makes garbage collection rare in Dagster's processes, which otherwise takes an eighth of their time to start.

Python imports this module when it starts, because its folder is in PYTHONPATH.
"""

import gc

gc.set_threshold(50_000, 20, 50)
