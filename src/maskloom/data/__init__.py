"""Sources to records, records to samples, samples to batches: everything between files and the network."""
