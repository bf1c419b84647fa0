"""Makes garbage collection rare in Dagster's processes and leaves it out at their end: a quarter of their time.

Python imports this module when it starts, because its folder is in PYTHONPATH.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 50)
atexit.register(gc.freeze)
