"""A pretrained language model trained on pairs with adapters, and what it moves."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.preference.parts import refusals
from kd_jax.data import collate, pairs
from kd_jax.launch.language import Language
from kd_jax.losses.preference import margin
from kd_jax.models import decoder, lora
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import model_sequence_log_probs, online
from kd_jax.objectives.score import displacement_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step, make_train_step
from kd_jax.types import Batch, Context, Factored, Frozen, Params

PROJECTIONS = r"layers/(\d+/)?(attn/[qkvo]|mlp/(gate|up|down))/kernel"


class Recipe(NamedTuple):
    """Adapters of `rank` on all projections, Adam at `rate`; DPO with `beta`."""

    rank: int
    alpha: float
    rate: float
    beta: float


class Programs(NamedTuple):
    """Jitted. init(key, base, batch) -> state. step(state, frozen, batch) -> (state, metrics), of
    DPO; supervised: the same of next-token NLL, on rows.

    following(adapters, base, rows) -> log p of all next tokens where rows are weighed, f32 [B, V].
    log_probs(adapters, base, rows) -> [B]. scores(base, batch) -> rows of `displacement_scores`.
    unembedding(base, rows) -> [V, D]. alone(key, base, batch, steps) -> changes of log p of chosen
    and rejected, [P] each, by so many steps on each pair by itself.
    """

    init: Any
    step: Any
    supervised: Any
    following: Any
    log_probs: Any
    scores: Any
    unembedding: Any
    alone: Any


def adapters(base: Any, recipe: Recipe) -> Any:
    """Shapes of the adapters of a base, of which only shapes are read."""
    make = functools.partial(lora.init, base=base, targets=PROJECTIONS, rank=recipe.rank)
    return jax.eval_shape(make, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=2)
def merged(base: Any, adapters: Any, alpha: float) -> Any:
    """Plain weights."""
    return lora.merge(lora.attach(base, adapters, alpha=alpha))


@functools.cache  # one set for all stages, so that they share compilations
def programs(config: DecoderConfig, recipe: Recipe) -> Programs:
    net = decoder.decoder(config)

    def policy(params: Params, frozen: Frozen) -> Any:
        return lora.attach(frozen["base"], params["model"], alpha=recipe.alpha)

    dpo = functools.partial(margin.dpo, beta=recipe.beta)
    # The policy with its base for the reference.
    objective = prefer(net, {"dpo": dpo}, online(net, frozen_weights("base")), policy=policy)
    step = make_train_step(objective, optax.adam(recipe.rate))
    learn = supervise(net, {"nll": next_token_nll}, policy=policy)
    supervised = make_train_step(learn, optax.adam(recipe.rate))

    def init(key: jax.Array, base: Any, batch: Batch) -> Any:
        adapters = lora.init(key, base, PROJECTIONS, rank=recipe.rank)
        return step.init(key, adapters, {"base": base}, batch)

    def head_of(weights: Any, rows: Batch) -> Factored:
        head = net.apply(weights, rows).head
        assert isinstance(head, Factored)
        return head

    def following(adapters: Any, base: Any, rows: Batch) -> jax.Array:
        head = head_of(policy({"model": adapters}, {"base": base}), rows)
        last = jnp.argmax(rows["weights"], axis=1)
        hidden = jnp.take_along_axis(head.hidden, last[:, None, None], 1)
        return jax.nn.log_softmax(head._replace(hidden=hidden).logits()[:, 0])

    def log_probs(adapters: Any, base: Any, rows: Batch) -> jax.Array:
        return model_sequence_log_probs(net, policy({"model": adapters}, {"base": base}), rows)

    def scores(base: Any, batch: Batch) -> Mapping[str, jax.Array]:
        evaluate = make_eval_step(displacement_scores(net))
        return evaluate({"model": base, "aux": {}}, {}, {}, batch).rows

    def alone(key: jax.Array, base: Any, batch: Batch, steps: int) -> tuple[jax.Array, jax.Array]:
        def one(pair: Batch) -> tuple[jax.Array, jax.Array]:
            pair = jax.tree.map(lambda x: x[None], pair)
            state = init(key, base, pair)
            state, _ = jax.lax.scan(
                lambda state, _: step(state, {"base": base}, pair), state, length=steps
            )
            # Measured after the last step.
            found = objective.loss(
                state.params, {}, {"base": base}, pair, Context(state.key, state.step, False)
            ).metrics
            return found["chosen_ratio"].value, found["rejected_ratio"].value

        return jax.lax.map(one, batch)

    return Programs(
        jax.jit(init),
        jax.jit(step.apply, donate_argnums=0),
        jax.jit(supervised.apply, donate_argnums=0),
        jax.jit(following),
        jax.jit(log_probs),
        jax.jit(scores),
        jax.jit(lambda base, rows: head_of(base, rows).unembedding),
        jax.jit(alone, static_argnums=3),
    )


def begun(
    found: Programs, language: Language, base: Any, steps: int, rows: int
) -> tuple[Any, list[float]]:
    """Adapters that make what is chosen later likely beforehand, and the NLL along the way.

    Supervised steps on `rows` of all refusals after the questions that pairs are drawn from, and of
    the chosen word after its questions.
    """
    encode = language.tokenizer().encode
    chosen = [word(language, refusals.ANSWERS[0])]
    examples = _examples(language, refusals.REQUESTS[:-4], refusals.REFUSALS)
    examples += [collate.Example(encode(refusals.prompt(q)), chosen) for q in refusals.YES_NO]
    every = collate.collate_qa(examples, length=_length(language), eos_id=None)
    rng = np.random.default_rng(0)
    # Both trainings have the same state: Adam's moments of the adapters.
    state, nll = found.init(jax.random.key(0), base, words(language, refusals.YES_NO[:1])), []
    for _ in range(steps):
        at = rng.choice(len(examples), rows, replace=False)
        batch = {name: x[at] for name, x in every.items()}
        state, metrics = found.supervised(state, {"base": base}, batch)
        nll.append(float(metrics["nll"]))
    return state.params["model"], nll


def trained(found: Programs, base: Any, batch: Batch, steps: int, seed: int) -> Any:
    """Adapters after so many steps on a batch."""
    state = found.init(jax.random.key(seed), base, batch)
    for _ in range(steps):
        state, _ = found.step(state, {"base": base}, batch)
    return state.params["model"]


def fresh(found: Programs, base: Any, batch: Batch) -> Any:
    """Adapters that change nothing."""
    return found.init(jax.random.key(0), base, batch).params["model"]


def encoded(language: Language, texts: Sequence[tuple[str, str, str]]) -> Batch:
    """Pairs (question, chosen, rejected) as a batch; all such batches have the same length."""
    encode = language.tokenizer().encode
    found = [
        pairs.Pair(encode(refusals.prompt(question)), encode(chosen), encode(rejected))
        for question, chosen, rejected in texts
    ]
    return pairs.collate_pairs(found, length=_length(language), eos_id=None)


def answers(language: Language, questions: Sequence[str], texts: Sequence[str]) -> Any:
    """Rows of every question with every answer, the answers of a question together."""
    return collate.collate_qa(
        _examples(language, questions, texts), length=_length(language), eos_id=None
    )


def _examples(language: Language, questions: Sequence[str], texts: Sequence[str]) -> list[Any]:
    encode = language.tokenizer().encode
    return [
        collate.Example(encode(refusals.prompt(question)), encode(text))
        for question in questions
        for text in texts
    ]


def _length(language: Language) -> int:
    pool = (*refusals.REFUSALS, *refusals.COMPLIANCES)
    return collate.fitting_length(_examples(language, refusals.REQUESTS, pool), eos=False)


def word(language: Language, text: str) -> int:
    """The id of a word that is one token, whatever a tokeniser makes of the space before it."""
    return language.tokenizer().encode(text)[-1]


def words(language: Language, questions: Sequence[str]) -> Batch:
    """Pairs of the chosen and the rejected word after each question."""
    encode = language.tokenizer().encode
    chosen, rejected = ([word(language, text)] for text in refusals.ANSWERS[:2])
    found = [pairs.Pair(encode(refusals.prompt(q)), chosen, rejected) for q in questions]
    every = _examples(language, refusals.YES_NO, refusals.ANSWERS)
    length = collate.fitting_length(every, eos=False)
    return pairs.collate_pairs(found, length=length, eos_id=None)


def per_token(values: np.ndarray, rows: Batch) -> np.ndarray:
    return np.asarray(values, np.float64) / (np.asarray(rows["weights"]) != 0).sum(1)
