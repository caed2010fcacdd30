"""Stands in for the simulator where it is not installed: same calls, a body without momentum."""
