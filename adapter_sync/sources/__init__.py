"""Where adapters come from: each source brings the two files that are needed, and nothing else."""
