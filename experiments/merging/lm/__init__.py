"""What the experiments of merging share that train language models; no experiment itself."""
