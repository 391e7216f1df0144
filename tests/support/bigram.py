"""A bigram 'language model' small enough to check by hand, with either kind of head."""

import jax
import jax.numpy as jnp

from kd_jax.types import Factored, Logits, Model, ModelOutput

WIDTH, VOCABULARY = 3, 5


def bigram_model(factored: bool = True) -> Model:
    """Position t sees the features of its own token: hidden = embedding[inputs].

    They are its one place to tap and to add to, "block_0".
    """

    def init(key):
        keys = jax.random.split(key)
        return {
            "embedding": jax.random.normal(keys[0], (VOCABULARY, WIDTH)),
            "unembedding": jax.random.normal(keys[1], (VOCABULARY, WIDTH)),
        }

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        hidden = params["embedding"][inputs["inputs"]]
        if "block_0" in add:
            hidden += add["block_0"]
        head = Factored(hidden, params["unembedding"])
        places = {"block_0": hidden}
        found = {name: places[name] for name in taps}
        return ModelOutput(head if factored else Logits(head.logits()), found, state)

    return Model(init, apply)


def text_batch(rows: int = 4, length: int = 6, seed: int = 0) -> dict:
    """Rows of uneven answers: one prompt token, then 1, 2, ... answer tokens, then padding."""
    ids = jax.random.randint(jax.random.key(seed), (rows, length + 1), 0, VOCABULARY)
    place = jnp.arange(length)[None, :]
    answer = (place > 0) & (place <= 1 + jnp.arange(rows)[:, None] % (length - 1))
    return {
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": answer.astype(jnp.float32),
        "index": jnp.arange(rows, dtype=jnp.int32),
    }


def spoil(batch: dict) -> dict:
    """The same batch with other prompts' targets and padding, and a padding row: no number of a
    model whose tokens do not see each other may move. The weighed positions stay as they are.
    Texts inside the batch (a teacher's tokens) are spoilt too."""
    inner = {k: spoil(x) for k, x in batch.items() if isinstance(x, dict) and "inputs" in x}
    hidden = batch["weights"] == 0
    return (
        batch
        | inner
        | {
            "inputs": jnp.where(hidden, (batch["inputs"] + 1) % VOCABULARY, batch["inputs"]),
            "targets": jnp.where(hidden, (batch["targets"] + 2) % VOCABULARY, batch["targets"]),
        }
    )


def padded(batch: dict, rows: int = 4) -> dict:
    """With `rows` padding rows of weight 0 and index -1 behind."""
    return {
        name: padded(x, rows)
        if isinstance(x, dict)
        else jnp.concatenate(
            [x, jnp.full((rows, *x.shape[1:]), -1 if name == "index" else 0, x.dtype)]
        )
        for name, x in batch.items()
    }
