"""Batches in memory -> embeddings and losses. Imports nothing of the other packages; reads no data."""

from model import torchvision_ops

torchvision_ops.install()
