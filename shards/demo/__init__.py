"""An own data set of drawn scenes with captions, made from a seed: no download, no licence, no waiting."""
