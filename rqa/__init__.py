"""rqa: train the generator of a retrieval-augmented question-answering system, and measure it."""

__version__ = "0.2.0"
