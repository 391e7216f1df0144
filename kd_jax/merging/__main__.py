"""python -m kd_jax.merging RECIPE.yaml OUT/: merges checkpoints on disk."""

import os
import sys

# Its own threads do the work: those of a linear algebra library would only be in their way. NumPy
# reads this when it is imported, hence before the imports (E402).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from kd_jax.merging.disk.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
