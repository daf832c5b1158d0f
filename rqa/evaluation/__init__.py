"""Scores, their intervals, and the files of results."""
