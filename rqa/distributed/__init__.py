"""Processes, precision, DeepSpeed and the device."""
