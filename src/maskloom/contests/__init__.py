"""The worlds of single contests: their layout on disk, their tables, the checks of their submissions."""
