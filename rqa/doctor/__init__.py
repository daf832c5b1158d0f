"""Checks of data and an estimate of memory before a training run."""
