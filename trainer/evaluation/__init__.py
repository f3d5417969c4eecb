"""Retrieval protocols: from the embeddings of a split to the tables of a paper."""
