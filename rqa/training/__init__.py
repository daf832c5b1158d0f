"""The training loop and its parts: batches, optimizer, schedule, checkpoints, logs."""
