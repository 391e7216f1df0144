"""Parts of npo_synthetic."""
