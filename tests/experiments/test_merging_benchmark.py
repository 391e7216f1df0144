"""Changed digits: tasks, specialists' stages, what merged trunks are measured on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made

from experiments.merging import digits_merge
from experiments.merging.common import measuring, reporting, tasks
from experiments.merging.common.specialists import Models, split
from experiments.merging.parts import informed, measures, methods
from kd_jax.launch.claims import Results
from kd_jax.merging import ties
from kd_jax.merging.average import average

BENCHMARK = tasks.digits((8,))
SIZES = methods.Sizes(trim=0.2, density=0.3, epsilon=0.15, keep=0.4, remove=0.2)


def images(split, task="turned"):
    return tasks.changed(BENCHMARK, task, split)["inputs"]


def test_tasks_change_images_and_splits_do_not_overlap():
    train, validation, test = (images(split) for split in ("train", "validation", "test"))
    assert len(validation) == -(-(len(train) + len(validation)) // tasks.HELD_OUT)
    known = {image.tobytes() for image in train}
    for others in (validation, test):
        assert sum(image.tobytes() in known for image in others) < 0.05 * len(others)
    plain = np.rot90(images("test"), -1, axes=(1, 2))
    seen = {plain.tobytes()}
    for task, change in tasks.TASKS.items():
        got = images("test", task)
        assert got.shape == plain.shape and got.dtype == np.uint8
        np.testing.assert_array_equal(got, change(plain))
        seen.add(got.tobytes())
    assert len(seen) == len(tasks.TASKS) + 1
    mixed = tasks.mixed(BENCHMARK, ("turned", "mirrored"), 10)
    np.testing.assert_array_equal(mixed["inputs"][:5], train[:5])
    np.testing.assert_array_equal(mixed["inputs"][5:], images("train", "mirrored")[5:10])


def test_shuffled_images_have_all_their_pixels():
    plain = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    shuffled = tasks.TASKS["shuffled"](plain)
    np.testing.assert_array_equal(np.sort(shuffled.reshape(2, -1)), plain.reshape(2, -1))
    np.testing.assert_array_equal(shuffled[1] - 64, shuffled[0])  # one order for all images


def test_every_seed_begins_at_another_task():
    config = dataclasses.replace(digits_merge.PRESETS["laptop"], tasks=3)
    orders = [config.order(seed) for seed in range(3)]
    assert orders[0] == config.names and {order[0] for order in orders} == set(config.names)
    assert all(sorted(order) == sorted(config.names) for order in orders)


@pytest.fixture(scope="module")
def models():
    """Perceptrons of digits that were never trained, under one head."""

    def trunk(seed):
        return split(BENCHMARK, BENCHMARK.model.init(jax.random.key(seed)))

    base, head = trunk(0)
    return Models(head, base, {task: trunk(i + 1)[0] for i, task in enumerate(tasks.TASKS)})


def by_hand(models, trunk, task):
    trunk, head = jax.tree.map(np.asarray, (trunk, models.head))
    x = tasks.changed(BENCHMARK, task, "test")
    hidden = x["inputs"].reshape(-1, 64) / 255 @ trunk["layer_0"]["kernel"]
    hidden = np.maximum(hidden + trunk["layer_0"]["bias"], 0)
    logits = hidden @ head["kernel"] + head["bias"]
    return 100 * float((np.argmax(logits, -1) == x["targets"]).mean())


def test_accuracies_of_trunks_under_the_head(models):
    judged = measuring.judge(BENCHMARK, models.head, models.first(3).specialists)
    names = list(models.specialists)[:3]
    trunks = [models.base, *models.first(3).specialists.values()]
    expected = [[by_hand(models, trunk, task) for task in names] for trunk in trunks]
    np.testing.assert_allclose(judged.reached(models.base), expected[0], atol=1e-4)
    np.testing.assert_allclose(judged.own, np.diag(expected[1:]), atol=1e-4)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trunks)
    found = measuring.accuracies(BENCHMARK, models.head, stacked, judged.test)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert judged.normalised(models.base) == pytest.approx(
        np.mean([100 * a / b for a, b in zip(expected[0], judged.own, strict=True)])
    )


@pytest.mark.slow
def test_the_scale_is_the_best_on_validation_images(models):
    judged = measuring.judge(BENCHMARK, models.head, models.first(2).specialists)
    direction = jax.tree.map(lambda a, b: a - b, models.specialists["turned"], models.base)
    found = judged.along(models.base, direction).mean(-1)
    for at in (0, -1):
        moved = jax.tree.map(
            lambda x, d, at=at: x + measuring.SCALES[at] * d, models.base, direction
        )
        assert found[at] == pytest.approx(judged.validated(moved), abs=1e-4)
    chosen = judged.best(models.base, direction)
    assert chosen.scale == measuring.SCALES[int(found.argmax())]
    assert judged.validated(chosen.trunk) == pytest.approx(found.max(), abs=1e-4)


@pytest.mark.slow
def test_directions_are_the_merges(models):
    base, thetas = models.base, list(models.first(2).specialists.values())
    made = methods.directions(SIZES)(base, thetas, jax.random.key(0))
    assert set(made) == set(methods.METHODS)

    def close(direction, merged):
        moved = jax.tree.map(lambda a, b: a + b, base, direction)
        for a, b in zip(*map(jax.tree.leaves, (moved, merged)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

    close(made["average"], average(thetas))
    close(made["TIES"], ties.ties(base, thetas, density=0.2))
    # DARE keeps three tenths of the entries of each of two models: 1 - 0.7**2 of all.
    kept = np.mean(np.asarray(made["DARE"]["layer_0"]["kernel"]) != 0)
    assert kept == pytest.approx(1 - 0.7**2, abs=0.08)


def test_ablations_and_conflicts_by_hand():
    base = {"w": jnp.zeros(4)}
    # Trimmed to the larger half: [4, 3, 0, 0], [-2, 5, 0, 0], [0, 0, 6, 7].
    vectors = [[4.0, 3.0, 1.0, 0.5], [-2.0, 5.0, 0.5, 0.1], [1.0, 0.5, 6.0, 7.0]]
    thetas = [{"w": jnp.asarray(x)} for x in vectors]
    sizes = SIZES._replace(trim=0.5)
    multitask = {"w": jnp.asarray([-1.0, 1.0, 1.0, -1.0])}
    made = methods.ablations(sizes)(base, thetas, multitask)
    expected = {
        "TIES": [4, 4, 6, 7],
        "no trimming": [2.5, 17 / 6, 2.5, 7.6 / 3],
        "no election": [1, 4, 6, 7],
        "mean over all": [4 / 3, 8 / 3, 2, 7 / 3],
        "sum": [4, 8, 6, 7],
        "largest": [4, 5, 6, 7],
        methods.ORACLE: [-2, 4, 6, 0],
    }
    assert set(made) == set(expected)
    for name, direction in made.items():
        np.testing.assert_allclose(direction["w"], expected[name], rtol=1e-6, err_msg=name)
    shares = methods.conflicts(0.5)(base, thetas)
    assert [float(shares[kind]) for kind in methods.KINDS] == [0.5, 0.25, 0.25]


def test_a_negated_task_and_means_of_it():
    rows = {"negated": np.array([[9.0, 2.0], [4.0, 7.0]])}
    assert measures.mean_negation(rows) == (8.0, 3.0)


def test_rows_of_seeds_are_put_in_the_order_of_tasks():
    orders = {0: ("a", "b"), 1: ("b", "a")}
    found = {
        "merged_0": Made(rows={"TIES/tasks": np.array([10.0, 20.0])}),
        "merged_1": Made(rows={"TIES/tasks": np.array([40.0, 30.0])}),
    }
    means = reporting.task_means({"TIES": "merged"}, ("a", "b"), orders, found)
    assert means == {"TIES": {"a": 20.0, "b": 30.0}}


def test_differences_are_paired_and_absent_where_one_is():
    results = Results({"x": {"a": [2.0, 4.0], "b": [1.0, 3.0]}})
    assert reporting.difference(("x", "a"), ("x", "b"))(results) == (1.0, 1.0, 1.0)
    assert reporting.difference(("x", "a"), ("x", "c"))(results) is None
    assert reporting.difference(("x", "a"), ("y", "b"))(results) is None


@pytest.mark.slow
def test_merges_that_look_at_data_are_measured_for_every_number_of_models(models):
    learning = informed.Learning(steps=2, rate=1e-3, passes=1)
    found = informed.measured(BENCHMARK, range(2, 3), learning, 0, models.first(2))
    assert set(found) == {
        f"{name}/{x}" for name in informed.NAMES for x in ("2/unsearched", "tasks")
    }
    for name in informed.NAMES:
        own = measuring.judge(BENCHMARK, models.head, models.first(2).specialists).own
        share = measuring.normalised(found[f"{name}/tasks"], own)
        assert found[f"{name}/2/unsearched"] == pytest.approx(share)
