"""One materialization: plan, partitions, step, failed rows."""
