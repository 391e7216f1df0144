"""Models as pure functions behind `kd_jax.types.Model`, adapters to other libraries, and LoRA."""
