"""TFDS builders, prepared and read without TensorFlow (array_record files).

They are not registered with TFDS, whose own builders may have the same names: import the class and
give it to `kd_jax.data.prepare.load`. Records keep the order of their files.
"""
