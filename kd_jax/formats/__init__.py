"""Files of other people's making: tensors on disk, tokenisers, folders, and one model to fetch.

Everything here is untrusted input: each size is checked against the file before anything is
allocated, nothing is unpickled, and what is wrong with a file is a ValueError that names it.
Imports nothing of ours and no JAX.
"""
