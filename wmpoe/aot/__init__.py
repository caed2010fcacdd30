"""Programs compiled ahead of time for TPUs that are not there, and what their text says."""
