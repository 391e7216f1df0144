"""What the experiments of the family share."""
