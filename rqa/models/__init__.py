"""The two kinds of generator, and loading of checkpoints."""
