"""What stays between steps: the queue, the momentum encoders and the prototypes. The same on every rank."""
