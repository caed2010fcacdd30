"""Readers of what others recorded: media files with tables, gymnasium, Minari, LeRobot, mazes."""
