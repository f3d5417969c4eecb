"""Pictures and sentences on disk -> batches in memory. Imports nothing of the other packages."""
