"""pforce: Ray-distributed experiments and ablations for Patch Forcing."""
