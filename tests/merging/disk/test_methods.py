"""Numbers worked by hand by mergekit's rules, and plain NumPy with full sorts."""

import ml_dtypes
import numpy as np
import pytest
from support.checkpoints import merged, of_models, write_model

BF16 = np.dtype(ml_dtypes.bfloat16)
BASE = np.float32([1, 1, 1, 1])
FIRST = np.float32([0.4, -0.3, 0.2, -0.1])
SECOND = np.float32([-0.1, 0.2, 0.3, 0.6])


@pytest.fixture
def three(tmp_path):
    write_model(tmp_path / "base", {"w": BASE})
    write_model(tmp_path / "first", {"w": BASE + FIRST})
    write_model(tmp_path / "second", {"w": BASE + SECOND})
    return tmp_path


def both(**parameters):
    return {"first": parameters, "second": parameters}


ONE_TWO = {"first": {"weight": 1}, "second": {"weight": 2}}
WORKED = {
    # mean of the two
    "linear": (of_models("linear", both(weight=2)), [0.15, -0.05, 0.25, 0.25]),
    # weights as they are: 3 (1 + d1) + (1 + d2) - 1
    "linear, not normalised": (
        of_models(
            "linear",
            {"first": {"weight": 3}, "second": {"weight": 1}},
            parameters={"normalize": False},
        ),
        [4.1, 2.3, 3.9, 3.3],
    ),
    "task_arithmetic": (
        of_models("task_arithmetic", both(weight=0.5), "base", {"lambda": 2}),
        [0.3, -0.1, 0.5, 0.5],
    ),
    "task_arithmetic, normalised": (
        of_models("task_arithmetic", both(weight=2), "base", {"normalize": True}),
        [0.15, -0.05, 0.25, 0.25],
    ),
    # Of the first .4 and -.3 are kept, of the second .3 and .6; nothing disagrees.
    "ties": (of_models("ties", both(weight=1, density=0.5), "base"), [0.4, -0.3, 0.3, 0.6]),
    # Weighted votes [.4, -.3, .2, -.1] + [-.2, .4, .6, 1.2] are all positive. Those that agree:
    # .4 / 1, .4 / 2, (.2 + .6) / 3, 1.2 / 2.
    "ties, weights inside the vote": (
        of_models("ties", ONE_TWO, "base"),
        [0.4, 0.2, 0.8 / 3, 0.6],
    ),
    "ties, not normalised": (
        of_models(
            "ties",
            {"first": {"weight": 1}, "second": {"weight": 2}},
            "base",
            {"normalize": False, "lambda": 0.5},
        ),
        [0.2, 0.2, 0.4, 0.6],
    ),
    # Trimmed to [.4, -.3, 0, 0]; L1 1 before, .7 after.
    "ties, rescaled": (
        of_models("ties", {"first": {"weight": 1, "density": 0.5}}, "base", {"rescale": True}),
        [0.4 / 0.7, -0.3 / 0.7, 0, 0],
    ),
    # Without the largest (.4 and .6) the two next remain: -.3, .2 and .3, .2.
    "breadcrumbs": (
        of_models("breadcrumbs", both(weight=1, density=0.5, gamma=0.25), "base"),
        [0, -0.1, 0.5, 0],
    ),
    "breadcrumbs_ties": (
        of_models("breadcrumbs_ties", both(weight=1, density=0.5, gamma=0.25), "base"),
        [0, -0.3, 0.5, 0],
    ),
    # density .75 leaves room for one to go: the largest, as gamma is .5 of them.
    "breadcrumbs, more outliers than room": (
        of_models("breadcrumbs", {"first": {"weight": 1, "density": 0.75, "gamma": 0.5}}, "base"),
        [0, -0.3, 0.2, -0.1],
    ),
    # Of random methods the rest of the formula, with all entries kept.
    "dare_linear": (of_models("dare_linear", ONE_TWO, "base"), [0.2, 0.1, 0.8, 1.1]),
    "dare_ties": (of_models("dare_ties", ONE_TWO, "base"), [0.4, 0.4, 0.8, 1.2]),
    "della_linear": (of_models("della_linear", ONE_TWO, "base"), [0.2, 0.1, 0.8, 1.1]),
    "della": (of_models("della", ONE_TWO, "base"), [0.4, 0.2, 0.8 / 3, 0.6]),
    "passthrough": (of_models("passthrough", {"first": {"scale": 2}}), [1.8, 0.4, 1.4, 0.8]),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name, three):
    recipe, delta = WORKED[name]
    np.testing.assert_allclose(merged(three, recipe)["w"], BASE + np.float32(delta), atol=1e-6)


def test_votes_that_cancel_count_as_positive(tmp_path):
    write_model(tmp_path / "base", {"w": np.zeros(2, np.float32)})
    write_model(tmp_path / "first", {"w": np.float32([0.5, -0.25])})
    write_model(tmp_path / "second", {"w": np.float32([-0.5, 0.25])})
    found = merged(tmp_path, of_models("ties", both(weight=1), "base"))
    np.testing.assert_array_equal(found["w"], np.float32([0.5, 0.25]))


def test_of_equal_magnitudes_the_first_are_kept_to_the_exact_count(tmp_path):
    write_model(tmp_path / "base", {"w": np.zeros(8, np.float32)})
    write_model(tmp_path / "first", {"w": np.float32([1, -2, 2, 2, 1, -2, 2, 1])})
    recipe = of_models("ties", {"first": {"weight": 1, "density": 0.4}}, "base")
    np.testing.assert_array_equal(merged(tmp_path, recipe)["w"], [0, -2, 2, 2, 0, 0, 0, 0])


def test_slerp_of_orthogonal_and_of_near_vectors(tmp_path):
    near = np.float32([300 * np.cos(0.03), 300 * np.sin(0.03)])  # a cosine of 0.99955
    write_model(tmp_path / "base", {"w": np.float32([1, 0, 0]), "near": np.float32([100, 0])})
    write_model(tmp_path / "other", {"w": np.float32([0, 2, 0]), "near": near})
    recipe = of_models("slerp", {"other": {}, "base": {}}, "base", {"t": 0.25})
    found = merged(tmp_path, recipe)
    np.testing.assert_allclose(found["w"], [0.923880, 0.765367, 0], atol=1e-6)
    straight = 0.75 * np.float32([100, 0]) + 0.25 * near
    np.testing.assert_allclose(found["near"], straight, rtol=1e-6)


def test_nuslerp_of_models_and_of_task_vectors(tmp_path):
    write_model(tmp_path / "base", {"w": np.float32([5, 5, 5])})
    write_model(tmp_path / "first", {"w": np.float32([1, 0, 0])})
    write_model(tmp_path / "second", {"w": np.float32([0, 2, 0])})
    write_model(tmp_path / "third", {"w": np.float32([6, 5, 5])})
    write_model(tmp_path / "fourth", {"w": np.float32([5, 7, 5])})
    expected = np.float32([0.923880, 0.765367, 0])
    recipe = of_models("nuslerp", {"first": {"weight": 3}, "second": {"weight": 1}})
    np.testing.assert_allclose(merged(tmp_path, recipe)["w"], expected, atol=1e-6)
    recipe = of_models("nuslerp", {"third": {"weight": 3}, "fourth": {"weight": 1}}, "base")
    np.testing.assert_allclose(merged(tmp_path, recipe, "o")["w"], 5 + expected, atol=1e-6)


def test_model_stock_of_the_card(tmp_path):
    base = np.float32([3, 2, 1])
    write_model(tmp_path / "base", {"w": base})
    write_model(tmp_path / "first", {"w": base + np.float32([1, 0, 0])})
    write_model(tmp_path / "second", {"w": base + np.float32([1, 1, 0])})
    found = merged(tmp_path, of_models("model_stock", {"first": {}, "second": {}}, "base"))
    np.testing.assert_allclose(found["w"] - base, [0.828427, 0.414214, 0], atol=1e-5)


def arrays(seed, dtype, base=None):
    """Tensors of several shapes, one of some blocks; equal magnitudes in low precision."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (1400, 260), "model.layers.0.w": (37, 5), "norm": (40,)}
    found = {}
    for name, shape in shapes.items():
        x = random.standard_normal(shape) * (1.0 if base is None else 0.125)
        x = np.round(x * 16) / 16 if seed % 2 else x
        found[name] = (x if base is None else base[name].astype(np.float64) + x).astype(dtype)
    return found


def write_three(folder, dtype):
    base = arrays(0, dtype)
    models = [base, arrays(1, dtype, base), arrays(2, dtype, base)]
    for name, x in zip(("base", "first", "second"), models, strict=True):
        write_model(folder / name, x)
    return models


def sorted_merge(base, models, *, weights, keep, vote, normalize):
    """The slow way: full sorts, one entry after the other."""
    deltas = []
    for model in models:
        delta = model.astype(np.float32).ravel() - base.astype(np.float32).ravel()
        order = np.argsort(-np.abs(delta), kind="stable")
        mask = np.zeros(delta.size, bool)
        mask[order[keep(delta.size)]] = True
        deltas.append(np.where(mask, delta, 0))
    values = [w * x for w, x in zip(weights, deltas, strict=True)]
    sign = np.where(sum(values) >= 0, 1, -1)
    agrees = [(np.sign(x) == sign) | (not vote) for x in values]
    total = sum(np.where(a, x, 0) for a, x in zip(agrees, values, strict=True))
    if normalize:
        divisor = sum(w * a for w, a in zip(weights, agrees, strict=True))
        total = total / np.where(divisor == 0, 1, divisor)
    return (base.astype(np.float32) + total.reshape(base.shape)).astype(base.dtype)


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64], ids=str)
@pytest.mark.parametrize(
    ("method", "given", "keep", "vote", "normalize"),
    [
        ("ties", {"density": 0.3}, lambda n: slice(0, int(0.3 * n)), True, True),
        ("ties", {"density": 1.0}, lambda n: slice(0, n), True, True),
        ("task_arithmetic", {}, lambda n: slice(0, n), False, False),
        (
            "breadcrumbs_ties",
            {"density": 0.6, "gamma": 0.1},
            lambda n: slice(int(0.1 * n), int(0.1 * n) + int(0.6 * n)),
            True,
            False,
        ),
        (
            "breadcrumbs",
            {"density": 0.9, "gamma": 0.3},
            lambda n: slice(n - int(0.9 * n), n),
            False,
            False,
        ),
    ],
)
def test_the_same_as_with_full_sorts(tmp_path, dtype, method, given, keep, vote, normalize):
    base, *models = write_three(tmp_path, dtype)
    names = {"first": {"weight": 0.75, **given}, "second": {"weight": 1.5, **given}}
    found = merged(tmp_path, of_models(method, names, "base"))
    for name, x in found.items():
        expected = sorted_merge(
            base[name],
            [model[name] for model in models],
            weights=(0.75, 1.5),
            keep=keep,
            vote=vote,
            normalize=normalize,
        )
        assert x.dtype == dtype
        np.testing.assert_allclose(
            x.astype(np.float64),
            expected.astype(np.float64),
            rtol=1e-2 if dtype == BF16 else 2e-3 if dtype == np.float16 else 1e-5,
            atol=1e-5,
        )
