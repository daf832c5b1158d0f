"""Queries to passages: the vector index, the encoder, and retrieval for the examples of a run."""
