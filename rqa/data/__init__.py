"""User files: examples, passages, the corpus, and the choice of passages for an example."""
