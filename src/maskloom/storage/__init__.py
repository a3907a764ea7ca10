"""Data and runs at URLs: what lies there, a local mirror of it, and how a run is published as it grows."""
