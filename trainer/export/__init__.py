"""A trained model for others to use: one file a format."""
