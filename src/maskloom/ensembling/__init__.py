"""Out-of-fold probabilities → weights, thresholds, and masks, each fitted thing scored on what it was not fitted on."""
