"""What the experiments of the family share; no experiment itself."""
