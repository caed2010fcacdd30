"""The mathematics of one denoiser: schedules, conversions, losses, samplers. Knows no network."""
