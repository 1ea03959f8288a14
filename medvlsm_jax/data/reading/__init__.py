"""From records to batches: order, pools, workers and caches."""
