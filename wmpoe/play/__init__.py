"""A local page where you steer through a world model: `python -m wmpoe play`."""
