"""The forms in which an adapter comes, each turned into its weights and its config."""
