"""Which tensors go where: gradients, slices, tied heads, other vocabularies, missing tensors."""

import json

import ml_dtypes
import numpy as np
import pytest
from support.checkpoints import merged, of_models, write_model

from kd_jax.merging.disk.errors import MergeError

BF16 = ml_dtypes.bfloat16
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def layer(i, rest="w"):
    return f"model.layers.{i}.{rest}"


def model(value, layers=3, rows=4, head=True, dtype=np.float32):
    """All entries are `value`, but those of layer i, which are value + i."""
    found = {EMBED: np.full((rows, 2), value, dtype)}
    for i in range(layers):
        found[layer(i)] = np.full((2, 2), value + i, dtype)
        found[layer(i, "mlp.w")] = np.full((2,), value + i, dtype)
    found["model.norm.weight"] = np.full((2,), value, dtype)
    if head:
        found[HEAD] = np.full((rows, 2), value, dtype)
    return found


@pytest.fixture
def two(tmp_path):
    config = {"num_hidden_layers": 3, "vocab_size": 4}
    write_model(tmp_path / "a", model(0.0), config)
    write_model(tmp_path / "b", model(10.0), config)
    return tmp_path


def values(found):
    return {name: float(x.flat[0]) for name, x in found.items()}


def test_a_gradient_runs_over_the_layers_and_starts_outside_them(two):
    recipe = of_models("linear", {"a": {"weight": [1, 0]}, "b": {"weight": [0, 1]}})
    found = values(merged(two, recipe))
    assert found[EMBED] == 0.0
    assert [found[layer(i)] for i in range(3)] == [0.0, 0.5 * 1 + 0.5 * 11, 12.0]
    assert found["model.norm.weight"] == found[HEAD] == 0.0


def test_filters_and_levels(two):
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": 1}},
            {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 3}]}},
        ],
        "parameters": {"weight": 0, "normalize": False},
    }
    found = values(merged(two, recipe))
    assert found[layer(1)] == 1.0
    assert found[layer(1, "mlp.w")] == 1 + 3 * 11
    assert found[HEAD] == 0.0


def piece(*sources, **keys):
    return {
        "sources": [{"model": m, "layer_range": list(r), **more} for m, r, more in sources],
        **keys,
    }


def test_layers_are_stacked_and_the_config_says_so(two):
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            piece(("a", (0, 2), {})),
            piece(("b", (1, 3), {"parameters": {"scale": [{"filter": "mlp", "value": 2}]}})),
            piece(("b", (2, 3), {})),
        ],
    }
    found = values(merged(two, recipe))
    assert [found[layer(i)] for i in range(5)] == [0.0, 1.0, 11.0, 12.0, 12.0]
    assert [found[layer(i, "mlp.w")] for i in range(5)] == [0.0, 1.0, 22.0, 24.0, 12.0]
    assert found[EMBED] == 0.0  # of the first slice
    assert found[HEAD] == 10.0  # of the last
    assert layer(5) not in found
    assert json.loads((two / "out/config.json").read_text())["num_hidden_layers"] == 5


def test_slices_are_merged_with_gradients_of_their_own(two):
    recipe = {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [
            piece(("a", (0, 2), {}), ("b", (0, 2), {}), parameters={"t": [0, 1]}),
            piece(("a", (2, 3), {}), ("b", (2, 3), {})),
        ],
        "parameters": {"t": 0.5},
    }
    found = values(merged(two, recipe))
    assert [found[layer(i)] for i in range(2)] == [0.0, 11.0]
    assert found[layer(2)] == pytest.approx(7.0)  # parallel: the straight line
    assert found[EMBED] == 0.0  # t of the first slice, at its start
    assert found[HEAD] == pytest.approx(10 * 0.5**0.5)  # zeros count as orthogonal


def test_a_base_among_the_models_is_no_task_vector(two):
    recipe = of_models("task_arithmetic", {"a": {"weight": 7}, "b": {"weight": 0.5}}, "a")
    assert values(merged(two, recipe))[EMBED] == 5.0


def test_a_tied_head_is_the_embeddings(tmp_path):
    config = {"tie_word_embeddings": True, "vocab_size": 4}
    write_model(tmp_path / "a", model(2.0, head=False), config)
    write_model(tmp_path / "b", model(10.0), {})
    write_model(tmp_path / "c", model(4.0, head=False), config)
    found = merged(tmp_path, of_models("linear", {"a": {"weight": 1}, "c": {"weight": 1}}))
    assert HEAD not in found
    found = merged(tmp_path, of_models("linear", {"a": {"weight": 1}, "b": {"weight": 1}}), "o")
    assert values(found)[HEAD] == 6.0
    written = json.loads((tmp_path / "o/config.json").read_text())
    assert written["tie_word_embeddings"] is False


def test_another_vocabulary_is_an_error_or_a_policy(tmp_path):
    random = np.random.default_rng(0)
    base = random.standard_normal((4, 2), np.float32)
    longer = random.standard_normal((6, 2), np.float32)
    longest = random.standard_normal((7, 2), np.float32)
    for name, x in (("base", base), ("longer", longer), ("longest", longest)):
        write_model(tmp_path / name, {EMBED: x}, {"vocab_size": len(x)})
    given = {"longer": {"weight": 1}, "longest": {"weight": 0.5}}
    with pytest.raises(MergeError, match=r"embed_tokens.*\(4, 2\) in base.*shapes: pad"):
        merged(tmp_path, of_models("task_arithmetic", given, "base"))

    found = merged(tmp_path, of_models("task_arithmetic", given, "base", shapes="intersect"), "i")
    expected = base + (longer[:4] - base) + 0.5 * (longest[:4] - base)
    np.testing.assert_allclose(found[EMBED], expected, atol=1e-6)

    found = merged(tmp_path, of_models("task_arithmetic", given, "base", shapes="pad"), "p")
    # Rows that the base lacks start from the mean of the models that have them.
    both = (longer[4:] + longest[4:6]) / 2
    both = both + (longer[4:] - both) + 0.5 * (longest[4:6] - both)
    np.testing.assert_allclose(
        found[EMBED], np.concatenate([expected, both, longest[6:]]), atol=1e-6
    )
    assert json.loads((tmp_path / "p/config.json").read_text())["vocab_size"] == 7

    given = {"base": {"weight": 1}}
    found = merged(tmp_path, of_models("ties", given, "longer", shapes="pad"), "b")
    np.testing.assert_allclose(found[EMBED], np.concatenate([base, longer[4:]]), atol=1e-6)

    found = merged(
        tmp_path,
        of_models("linear", {"base": {"weight": 1}, "longer": {"weight": 1}}, shapes="pad"),
        "l",
    )
    np.testing.assert_allclose(
        found[EMBED], np.concatenate([(base + longer[:4]) / 2, longer[4:]]), atol=1e-6
    )


def test_other_shapes_have_no_policy(tmp_path):
    write_model(tmp_path / "a", {"w": np.zeros((2, 3), np.float32)})
    write_model(tmp_path / "b", {"w": np.zeros((3, 2), np.float32)})
    recipe = of_models("linear", {"a": {"weight": 1}, "b": {"weight": 1}}, shapes="pad")
    with pytest.raises(MergeError, match=r"w: is \(2, 3\) in a, \(3, 2\) in b"):
        merged(tmp_path, recipe)


def test_missing_tensors_are_an_error_or_copied(tmp_path):
    write_model(tmp_path / "a", {"w": np.zeros(2, np.float32)})
    write_model(tmp_path / "b", {"w": np.ones(2, np.float32), "v": np.full(1, 5, np.float32)})
    given = {"a": {"weight": 1}, "b": {"weight": 1}}
    with pytest.raises(MergeError, match="a lacks v; say missing: copy"):
        merged(tmp_path, of_models("linear", given))
    found = merged(tmp_path, of_models("linear", given, missing="copy"))
    np.testing.assert_array_equal(found["v"], [5])
    np.testing.assert_array_equal(found["w"], [0.5, 0.5])
    assert "v is copied from b: a lacks v" in (tmp_path / "out/README.md").read_text()


def test_integers_are_copied_from_the_base_and_scalars_and_empty_tensors_merged(tmp_path):
    for i, name in enumerate(("a", "b")):
        arrays = {
            "ids": np.arange(3) + i,
            "on": np.array([True, bool(i)]),
            "scale": np.float32(i),
            "none": np.zeros((0, 4), np.float32),
        }
        write_model(tmp_path / name, arrays)
    recipe = of_models("ties", {"a": {"weight": 1, "density": 1}}, "b", dtype="float16")
    found = merged(tmp_path, recipe)
    np.testing.assert_array_equal(found["ids"], [1, 2, 3])
    np.testing.assert_array_equal(found["on"], [True, True])
    assert found["ids"].dtype == np.int64
    assert found["scale"] == 0.0
    assert found["scale"].dtype == np.float16
    assert found["none"].shape == (0, 4)


def test_mixed_dtypes_need_a_dtype(tmp_path):
    write_model(tmp_path / "a", {"w": np.float32([1, 2])})
    write_model(tmp_path / "b", {"w": np.asarray([3, 4], BF16)})
    given = {"a": {"weight": 1}, "b": {"weight": 1}}
    with pytest.raises(MergeError, match="w: is float32 in a, bfloat16 in b; say which dtype"):
        merged(tmp_path, of_models("linear", given))
    found = merged(tmp_path, of_models("linear", given, dtype="bfloat16"))
    assert found["w"].dtype == BF16
    np.testing.assert_array_equal(found["w"], np.asarray([2, 3], BF16))
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == {"torch_dtype": "bfloat16"}


FAULTS = {
    "no base": (of_models("ties", {"a": {"weight": 1}}), "base_model: ties needs one"),
    "no weight": (of_models("linear", {"a": {}}), "weight: linear needs it for .* of a"),
    "an unknown parameter": (
        of_models("linear", {"a": {"wieght": 1}}),
        "parameters: unknown 'wieght'",
    ),
    "a density": (
        of_models("ties", {"a": {"weight": 1, "density": 2}}, "b"),
        "density of a: got 2.0 .* takes 0 to 1",
    ),
    "nothing kept": (
        of_models("ties", {"a": {"weight": 1, "density": 0.1}}, "b"),
        "density: 0.1 of .* keeps none of them; give it another",
    ),
    "an epsilon": (
        of_models("della", {"a": {"weight": 1, "density": 0.1}}, "b"),
        "epsilon: got 0.15",
    ),
    "weights that cancel": (
        of_models("linear", {"a": {"weight": 1}, "b": {"weight": -1}}),
        "weight: .* add up to 0",
    ),
    "models of slerp": (
        of_models("slerp", {"a": {}}, "a", {"t": 0.5}),
        "slerp: got 0 models besides the base, takes 1",
    ),
    "a flag": (
        of_models("model_stock", {"a": {}, "c": {}}, "b", {"filter_wise": True}),
        "filter_wise: True is not supported",
    ),
    "a flat threshold": (
        of_models("linear", {"a": {"weight": 1}}, threshold="flat"),
        "threshold: flat is for ties",
    ),
    "densities of a flat threshold": (
        of_models("ties", {"a": {"weight": 1, "density": [0.1, 0.9]}}, "b", threshold="flat"),
        "density: with threshold: flat a takes one for all",
    ),
    "a model that is not there": (of_models("linear", {"z": {"weight": 1}}), "z: no such folder"),
    "a layer that is not there": (
        {"merge_method": "passthrough", "slices": [piece(("a", (2, 4), {}))]},
        "layer_range: a has no layer 3",
    ),
    "a slice without the base": (
        {
            "merge_method": "task_arithmetic",
            "base_model": "b",
            "slices": [piece(("a", (0, 1), {"parameters": {"weight": 1}}))],
        },
        r"slices\[0\].sources: lacks the base model b",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_named_and_nothing_is_written(name, two):
    write_model(two / "c", model(1.0))
    recipe, message = FAULTS[name]
    with pytest.raises(MergeError, match=message) as error:
        merged(two, recipe)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in two.iterdir()) == ["a", "b", "c", "recipe.yaml"]


def test_what_has_no_effect_is_said(two):
    recipe = of_models(
        "task_arithmetic",
        {"b": {"weight": 1, "normalize": True}},
        "a",
        {"int8_mask": True, "t": 0.5},
    )
    merged(two, recipe)
    card = (two / "out/README.md").read_text()
    assert "- int8_mask has no effect on task_arithmetic" in card
    assert "- t has no effect on task_arithmetic" in card
    assert "- normalize of b has no effect: give it for all models" in card
