"""Batches in memory -> embeddings and losses. Imports nothing of the other packages; reads no data."""
