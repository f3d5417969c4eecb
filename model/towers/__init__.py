"""Backbones that turn pixels or token ids into a global feature and local tokens."""
