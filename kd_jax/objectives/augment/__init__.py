"""Augmentation of images on the device: pure functions of a key, and the `prepare` of a training.

Training(step, ..., prepare=augmented(chain(flip, crop, rand_augment), mix=cutmix))
"""
