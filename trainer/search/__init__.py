"""From a trained model to answers: embeddings of shards, an index of them, and queries."""
