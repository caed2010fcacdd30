"""Data: the episode format, the Memory Cards environment and the input pipeline."""
