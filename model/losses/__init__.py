"""Loss terms: plain tensors in, a scalar out."""
