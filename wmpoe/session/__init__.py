"""Live sessions: a world model with its running episodes, and memory as a file."""

from wmpoe.session.live import Session

__all__ = ['Session']
