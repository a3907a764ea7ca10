"""From batches to a bundle: optimisers, schedules, updates, checkpoints, and the one training loop."""
