"""Image → probabilities: tiles, test-time views, the ensemble tree, and one pass over all of it."""
