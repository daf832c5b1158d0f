"""Command-line flags, configuration files, and help of the recipes."""
