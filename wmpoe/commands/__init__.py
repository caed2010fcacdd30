"""The commands of `python -m wmpoe`, one module each."""
