"""Tokens of transformers and mixers as maps.

    attention(("block_5", "block_8"), ("block_2/map", "block_4/map"))

compares the maps of a convolutional student with the tokens of `with_maps(teacher)`.
"""

import jax

from kd_jax.types import Model, ModelOutput


def folded(tokens: jax.Array, *, class_tokens: int = 0) -> jax.Array:
    """[B, N, D] -> [B, S, S, D], patches row by row; the first `class_tokens` are left out.

    ValueError unless the patches are S^2, of a square image.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens: got shape {tokens.shape}, takes [B, N, D]")
    patches = tokens[:, class_tokens:]
    side = round(patches.shape[1] ** 0.5)
    if side**2 != patches.shape[1]:
        raise ValueError(f"tokens: got {patches.shape[1]} patches, takes a square number")
    return patches.reshape(tokens.shape[0], side, side, tokens.shape[-1])


def with_maps(model: Model, *, class_tokens: int = 0) -> Model:
    """The model with every tap NAME [B, N, D] also as "NAME/map", `folded`. Weights are the same.

    Of a student or of a teacher, so that parts on maps work between any two architectures; those
    that want one size of the two pool the larger (`weighing.same_places`).
    """

    def apply(params, inputs, *, taps=(), **given) -> ModelOutput:
        maps = {t: t.removesuffix("/map") for t in taps if t.endswith("/map")}
        asked = tuple(dict.fromkeys(maps.get(t, t) for t in taps))
        output = model.apply(params, inputs, taps=asked, **given)
        found = {
            t: folded(output.taps[maps[t]], class_tokens=class_tokens)
            if t in maps
            else output.taps[t]
            for t in taps
        }
        return output._replace(taps=found)

    return model._replace(apply=apply)
