"""Parts of single experiments: their reports, and what they do beside the common stages."""
