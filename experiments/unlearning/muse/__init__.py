"""Parts of muse_small."""
