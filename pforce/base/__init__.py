"""Input errors, atomic file writes, and the console: the base of everything else."""
