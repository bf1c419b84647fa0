"""Assets, schedule and resources of the example."""
