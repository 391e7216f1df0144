"""The types can hold the hard cases: each test is a method in small, written on the types alone.

A memory bank, an adaptive clock, a latent perturbation held over several steps, iterative rounds,
batch-level statistics, alternation, LoRA with its base as reference, surgery over two terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support.linear import CLASSES, FEATURES, assert_trees_close, batch_of, linear_model

from kd_jax.gradients import plain, surgery
from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.references import model_sequence_log_probs, online, precomputed
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.objectives.unlearn.likelihood import gradient_difference
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.steps import make_train_step, sequence
from kd_jax.types import Logits, Model, ModelOutput, Objective, Output, Term, weighted_sum

MODEL = linear_model()
PARAMS = MODEL.init(jax.random.key(0))
KEY = jax.random.key(1)


def run(step, state, frozen, batches):
    jitted, history = jax.jit(step.apply), []
    for batch in batches:
        state, metrics = jitted(state, frozen, batch)
        history.append(metrics)
    return state, history


def test_memory_bank():
    """CRD: rows of features go to a bank in carry, by index; padding rows (index -1) do not."""
    momentum, size = 0.5, 6

    def loss(params, carry, frozen, batch, ctx):
        feature = MODEL.apply(params["model"], batch).head.logits()
        negatives = feature @ carry["bank"].T
        return Output(
            {"nce": weighted_sum(jax.nn.logsumexp(negatives, -1), batch["weights"])},
            rows={"feature": feature, "index": batch["index"]},
        )

    def update(carry, new_params, frozen, output, ctx):
        index = output.rows["index"]
        old = carry["bank"][index]
        new = momentum * old + (1 - momentum) * output.rows["feature"]
        # A row to drop is sent outside the bank.
        where = jnp.where(index < 0, size, index)
        return {"bank": carry["bank"].at[where].set(new, mode="drop")}

    bank = jax.random.normal(KEY, (size, CLASSES))
    objective = Objective(lambda *_: ({}, {"bank": bank}), loss, update)
    batch = batch_of(4) | {"index": jnp.array([5, 2, -1, 0])}
    results = []
    for k in (1, 2):  # rows come back in the batch's order from microbatches
        step = make_train_step(objective, optax.sgd(0.0), microbatches=k)
        state = step.init(KEY, PARAMS, {}, batch)
        results.append(run(step, state, {}, [batch])[0].carry["bank"])
    expected = np.array(bank)
    feature = np.array(MODEL.apply(PARAMS, batch).head.logits())
    for row, index in ((0, 5), (1, 2), (3, 0)):
        expected[index] = 0.5 * expected[index] + 0.5 * feature[row]
    for got in results:
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_adaptive_clock():
    """TAID: the coefficient reads the step's loss, once a step and not once a microbatch.

    Values for alpha 5e-4, beta 0.99, t_start 0.4, 10000 steps and losses 2.0, 1.5, 1.6, 1.2.
    """
    start, alpha, beta, total = 0.4, 5e-4, 0.99, 10000

    def loss(params, carry, frozen, batch, ctx):
        return Output({"taid": weighted_sum(batch["loss"], batch["weights"])})

    def update(carry, new_params, frozen, output, ctx):
        value = output.terms["taid"].value
        first = carry["previous"] < 0
        delta = (carry["previous"] - value) / (carry["previous"] + 1e-15)
        momentum = jnp.where(first, 0.0, beta * carry["momentum"] + (1 - beta) * delta)
        moved = carry["c"] + alpha * jax.nn.sigmoid(momentum) * (1 - carry["c"])
        straight = start + (1 - start) * ctx.step / total
        c = jnp.where(first, carry["c"], jnp.minimum(1.0, jnp.maximum(straight, moved)))
        return {"c": c, "momentum": momentum, "previous": value}

    def init(key, params, frozen, batch):
        return {}, {k: jnp.float32(v) for k, v in (("c", start), ("momentum", 0), ("previous", -1))}

    step = make_train_step(Objective(init, loss, update), optax.sgd(0.1), microbatches=2)
    batches = [
        {"loss": jnp.array([x - 0.5, x, x + 0.5, 9.0]), "weights": jnp.array([1.0, 2, 1, 0])}
        for x in (2.0, 1.5, 1.6, 1.2)
    ]
    state, clock = step.init(KEY, PARAMS, {}, batches[0]), []
    for batch in batches:
        state, _ = run(step, state, {}, [batch])
        clock.append(float(state.carry["c"]))
    np.testing.assert_allclose(clock, [0.4, 0.40015019, 0.40030029, 0.40045053], atol=2e-7)
    np.testing.assert_allclose(state.carry["momentum"], 0.00429025, rtol=1e-4)


def test_latent_perturbation_held_over_several_steps():
    """LAT: `prepare` finds a perturbation against current weights; several steps train on it."""

    def attack(state, frozen, batch):
        def harm(delta):
            output = MODEL.apply(state.params["model"], batch, add={"inputs": delta})
            return label_cross_entropy(output, batch).value

        delta = jnp.zeros_like(batch["inputs"])
        for _ in range(3):
            delta = delta + 0.1 * jnp.sign(jax.grad(harm)(delta))
        return batch | {"delta": delta}

    def loss(params, carry, frozen, batch, ctx):
        output = MODEL.apply(params["model"], batch, add={"inputs": batch["delta"]})
        return Output({"ce": label_cross_entropy(output, batch)})

    step = make_train_step(Objective(lambda *_: ({}, {}), loss), optax.sgd(0.2))
    raw = batch_of(8)
    state = step.init(KEY, PARAMS, {}, raw)
    held = jax.jit(attack)(state, {}, raw)
    clean = label_cross_entropy(MODEL.apply(PARAMS, raw), raw).value
    trained, history = run(step, state, {}, [held] * 4)
    losses = [float(m["loss"]) for m in history]
    assert losses[0] > float(clean)  # the attack does harm
    assert losses == sorted(losses, reverse=True)  # and the held one is trained away
    again = attack(trained, {}, raw)["delta"]
    assert not np.array_equal(again, held["delta"])  # a new round attacks the new weights


def test_iterative_rounds_with_the_last_iterate_as_reference():
    """INPO: each round's iterate is the next round's reference; one compilation serves all."""
    reference = online(_token_model())

    def loss(params, carry, frozen, batch, ctx):
        gap = _sequence_log_probs(params["model"], batch) - reference(params, frozen, batch)
        return Output({"square": weighted_sum((gap - 1.0) ** 2, jnp.ones_like(gap))})

    step = make_train_step(Objective(lambda *_: ({}, {}), loss), optax.sgd(0.05))
    batch, jitted = _tokens(), jax.jit(step.apply)
    state, weights, first = step.init(KEY, PARAMS, {"reference": PARAMS}, batch), PARAMS, []
    for _ in range(3):
        frozen = {"reference": weights}
        for i in range(5):
            state, metrics = jitted(state, frozen, batch)
            if i == 0:
                first.append(float(metrics["loss"]))
        weights = jax.tree.map(jnp.copy, state.params["model"])
    np.testing.assert_allclose(first, 1.0, rtol=1e-6)  # the gap is zero at each round's start
    assert jitted._cache_size() == 1


def _token_model():
    """A bigram 'language model' of the linear model: position t sees features of its token."""
    table = jax.random.normal(jax.random.key(9), (CLASSES, FEATURES))

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        x = table[inputs["inputs"]]
        z = jnp.einsum("btf,fc->btc", x, params["kernel"]) + params["bias"].reshape(1, 1, -1)
        return ModelOutput(Logits(z), {}, state)

    return Model(MODEL.init, apply)


def _tokens(rows=4, length=5):
    ids = jax.random.randint(jax.random.key(2), (rows, length + 1), 0, CLASSES)
    weights = (jnp.arange(length)[None, :] < jnp.arange(2, rows + 2)[:, None]).astype(jnp.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def _sequence_log_probs(weights, batch):
    return model_sequence_log_probs(_token_model(), weights, batch)


def test_batch_level_statistics():
    """BCO: rewards minus their mean over the whole batch, exact over microbatches, no gradient."""

    def reward(params, batch):
        return MODEL.apply(params["model"], batch).head.logits()[:, 0]

    def stats(params, carry, frozen, batch, ctx):
        return {"shift": weighted_sum(reward(params, batch), batch["weights"])}

    def loss(params, carry, frozen, batch, ctx):
        margin = reward(params, batch) - ctx.stats["shift"]
        return Output({"bco": weighted_sum(-jax.nn.log_sigmoid(margin), batch["weights"])})

    objective = Objective(lambda *_: ({}, {}), loss, stats=stats)
    batch, results = batch_of(8), []
    for k in (1, 4):
        step = make_train_step(objective, optax.sgd(1.0), microbatches=k)
        results.append(run(step, step.init(KEY, PARAMS, {}, batch), {}, [batch]))
    assert_trees_close(*results)

    def by_hand(params):
        r, w = reward({"model": params}, batch), batch["weights"]
        shift = jax.lax.stop_gradient(jnp.average(r, weights=w))
        return jnp.average(-jax.nn.log_sigmoid(r - shift), weights=w)

    expected = jax.tree.map(lambda p, g: p - g, PARAMS, jax.grad(by_hand)(PARAMS))
    assert_trees_close(results[0][0].params["model"], expected)
    # The same objective inside a sum finds its own statistics.
    both = add({"a": objective, "b": on("part", objective)})
    step = make_train_step(both, optax.sgd(1.0), microbatches=2)
    two = batch | {"part": batch}
    _, history = run(step, step.init(KEY, PARAMS, {}, two), {}, [two])
    np.testing.assert_allclose(history[0]["a/bco"], history[0]["b/bco"], rtol=1e-6)
    np.testing.assert_allclose(history[0]["a/bco"], results[0][1][0]["bco"], rtol=1e-6)


def test_alternation_of_two_players():
    """min over x, max over y of x y + x^2 / 2 - y^2 / 2: each moves its own, both reach 0."""

    def value(sign):
        def loss(params, carry, frozen, batch, ctx):
            x, y = params["model"]["x"], params["aux"]["player"]["y"]
            game = x * y + 0.5 * x**2 - 0.5 * y**2
            return Output(
                {"game": Term(sign * game * batch["weights"].sum(), batch["weights"].sum())}
            )

        return Objective(lambda *_: ({"player": {"y": jnp.float32(1.0)}}, {}), loss)

    step = sequence(
        make_train_step(value(1.0), optax.sgd(0.3), trains="model/.*"),
        make_train_step(value(-1.0), optax.adam(0.1), trains="aux/player/.*"),
    )
    batch = {"weights": jnp.ones(2)}
    state = step.init(KEY, {"x": jnp.float32(2.0)}, {}, batch)
    after, history = run(step, state, {}, [batch])
    # x first, with the old y; then y, with the new x: Adam's first step is its learning rate.
    np.testing.assert_allclose(after.params["model"]["x"], 2.0 - 0.3 * (1.0 + 2.0), rtol=1e-6)
    np.testing.assert_allclose(after.params["aux"]["player"]["y"], 1.0 + 0.1, rtol=1e-4)
    assert set(history[0]) >= {"loss", "0/game", "1/game"}
    assert int(after.step) == 1
    end, _ = run(step, after, {}, [batch] * 150)
    assert abs(float(end.params["model"]["x"])) < 0.05
    assert abs(float(end.params["aux"]["player"]["y"])) < 0.05


def test_lora_with_its_base_as_reference():
    """The policy attaches what is trained to frozen["base"]; the reference is the base alone."""
    model = _token_model()

    def policy(params, frozen):
        lora, base = params["model"], frozen["base"]
        return base | {"kernel": base["kernel"] + lora["a"] @ lora["b"]}

    objective = negative_preference(
        model, online(model, lambda params, frozen: frozen["base"]), beta=0.1, policy=policy
    )
    lora = {"a": jax.random.normal(KEY, (FEATURES, 2)), "b": jnp.zeros((2, CLASSES))}
    step = make_train_step(objective, optax.sgd(0.5))
    batch, frozen = _tokens(), {"base": PARAMS}
    before = jax.tree.map(np.array, frozen)
    state = step.init(KEY, lora, frozen, batch)
    assert set(state.params["model"]) == {"a", "b"}  # the base is neither trained nor saved
    end, history = run(step, state, frozen, [batch] * 5)
    np.testing.assert_allclose(history[0]["loss"], 2 / 0.1 * np.log(2), rtol=1e-6)
    assert float(history[-1]["log_ratio"]) < 0 < float(history[0]["loss"] - history[-1]["loss"])
    assert_trees_close(frozen, jax.tree.map(jnp.array, before), rtol=0, atol=0)
    # Precomputed references are the same objective.
    fixed = batch | {"reference_log_probs": _sequence_log_probs(PARAMS, batch)}
    other = make_train_step(
        negative_preference(model, precomputed(), beta=0.1, policy=policy), optax.sgd(0.5)
    )
    got, _ = run(other, other.init(KEY, lora, frozen, fixed), frozen, [fixed] * 5)
    assert_trees_close(got.params, end.params)


def test_surgery_over_two_terms_of_an_unlearning_objective():
    """Both terms improve to first order, where in the plain sum one of them has to lose."""
    model = _token_model()
    objective = gradient_difference(model)
    batch = {"forget": _tokens(), "retain": _tokens(rows=2)}  # they share rows: a conflict
    rules = {"plain": plain(), "surgery": surgery(("forget", "retain"))}
    change = {}
    for name, rule in rules.items():
        step = make_train_step(objective, optax.sgd(0.02), gradient=rule)
        _, (first, second) = run(step, step.init(KEY, PARAMS, {}, batch), {}, [batch] * 2)
        change[name] = [float(second[t] - first[t]) for t in ("forget/ascent", "retain/nll")]
    assert max(change["surgery"]) < 0 < max(change["plain"])
