"""Examples and passages to token ids, and token ids to batches."""
