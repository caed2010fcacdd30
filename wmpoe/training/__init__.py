"""Training: a generic, exactly resumable loop around any task with an init and a loss.

`trainer.train` runs it, `state` holds what is trained, `checkpoints` what is kept on disk and
`metrics_log` what is said while it runs.
"""
