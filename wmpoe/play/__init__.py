"""A local page on which one steers through a world model: `python -m wmpoe play`."""
