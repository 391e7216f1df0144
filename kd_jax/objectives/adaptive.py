"""Learning how to merge, from inputs without labels."""

from collections.abc import Callable, Mapping

from kd_jax.losses.classification import prediction_entropy
from kd_jax.objectives.combinators import own_weights
from kd_jax.types import (
    Batch,
    Context,
    Frozen,
    Model,
    Objective,
    Output,
    Policy,
    PyTree,
    stateless,
    weighted_sum,
)

Whole = Callable[[PyTree, Frozen], PyTree]


def minimise_entropy(
    model: Model, tasks: Mapping[str, Whole], *, policy: Policy = own_weights, eps: float = 1e-8
) -> Objective:
    """The sum over tasks of the mean entropy of the predictions on each task's inputs.

    policy(params, frozen) -> the merged weights, made once for all tasks: a merge of frozen models
        with params["model"] for coefficients (`merging.adaptive.add_layerwise`), which are then all
        that is trained. tasks: {name: (merged, frozen) -> weights of the model}, which puts the
        head of that task to them.
    batch: {name: {"inputs", "weights" [B]}}; labels are not read. Terms "name/entropy", a mean over
        that task's examples. The model is in evaluation mode (no dropout, no state of its own).

    What is learned has seen the inputs: on test inputs it is transductive, to be declared. Where a
    batch has few classes, low entropy may mean that all are taken for one of them.

    AdaMerging, Yang et al. 2024 (arXiv 2310.02575), equation 7: Adam at 1e-3 for 1000 steps of 16
    inputs a task, from coefficients of 0.3.
    """

    def loss(params, carry, frozen, batch: Batch, ctx: Context) -> Output:
        merged = policy(params, frozen)

        def entropy(name: str, whole: Whole):
            logits = model.apply(whole(merged, frozen), batch[name]).head.logits()
            return weighted_sum(prediction_entropy(logits, eps=eps), batch[name]["weights"])

        return Output({f"{name}/entropy": entropy(name, whole) for name, whole in tasks.items()})

    if not tasks:
        raise ValueError("tasks: got none, takes at least one")
    return stateless(loss)
