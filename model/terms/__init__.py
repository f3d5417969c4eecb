"""Loss terms: what of a step each takes, which state it keeps, and when it starts."""
