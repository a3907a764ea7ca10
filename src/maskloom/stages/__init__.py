"""The stages of a run, one module each: what a stage reads from the run folder and what it leaves there."""
