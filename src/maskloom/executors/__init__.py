"""Where the tasks of a run are computed: in this process, in several of this host, or on a Ray cluster."""
