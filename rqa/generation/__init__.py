"""Prompts to answers, in batches or in a conversation."""
