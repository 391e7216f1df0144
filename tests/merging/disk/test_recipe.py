"""What a recipe says, and what of it is refused with the key in the message."""

import pytest

from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.methods import METHODS
from kd_jax.merging.disk.parameters import parse_settings, resolve, value_of
from kd_jax.merging.disk.recipe import parse_recipe

TIES = """
merge_method: ties
base_model: base
models:
  - model: first
    parameters: {weight: 1, density: 0.5}
"""


def parse(text):
    return parse_recipe(text, frozenset(METHODS))


def test_a_recipe_is_read():
    recipe = parse(TIES + "parameters: {normalize: true}\ndtype: bfloat16\nmax_shard_size: 2MB\n")
    assert (recipe.method, recipe.base, recipe.dtype) == ("ties", "base", "bfloat16")
    assert recipe.models == ["base", "first"]
    assert recipe.max_shard_bytes == 2_000_000
    assert not recipe.flat
    assert not recipe.allow_nan
    assert parse(TIES + "dtype: float32\nout_dtype: float16").dtype == "float16"
    assert parse(TIES + "dtype: torch.float16").dtype == "float16"
    assert parse(TIES + "dtype: ~").dtype is None


@pytest.mark.parametrize(("size", "expected"), [(7, 7), ("5B", 5 * 10**9), ("3 kb", 3000)])
def test_sizes(size, expected):
    if " " in str(size):
        with pytest.raises(MergeError, match="max_shard_size"):
            parse(TIES + f"max_shard_size: {size}")
    else:
        assert parse(TIES + f"max_shard_size: {size}").max_shard_bytes == expected


FAULTS = {
    "an unknown key": (TIES + "densities: 3", "unknown key 'densities'"),
    "a key given twice": (TIES + "base_model: other", "'base_model' is given twice"),
    "not YAML": ("a: [", "not YAML"),
    "not keys": ("- a", "takes keys with their values"),
    "nothing": ("", "takes keys with their values"),
    "no method": ("models: []", "merge_method is missing"),
    "an unknown method": ("merge_method: sce\nmodels: [{model: a}]", "merge_method: got 'sce'"),
    "models and slices": (TIES + "slices: []", "models, slices"),
    "neither": ("merge_method: ties", "models, slices"),
    "no models": ("merge_method: ties\nmodels: []", "models: got"),
    "a model without a name": (
        "merge_method: ties\nmodels: [{}]",
        r"models\[0\]: model is missing",
    ),
    "an unknown key of a model": (
        "merge_method: ties\nmodels: [{model: a, wieght: 1}]",
        r"models\[0\]: unknown key 'wieght'",
    ),
    "a model given twice": (
        "merge_method: linear\nmodels: [{model: a}, {model: a}]",
        "a is given twice",
    ),
    "an adapter": ("merge_method: linear\nmodels: [{model: a+lora}]", "adapters"),
    "a dtype": (TIES + "dtype: int8", "dtype: got 'int8'"),
    "a tokeniser": (TIES + "tokenizer_source: union", "tokenizer_source: got 'union'"),
    "a part of mergekit's": (TIES + "modules: {}", "modules: not supported here"),
    "a shard size": (TIES + "max_shard_size: many", "max_shard_size: got 'many'"),
    "a seed": (TIES + "seed: -1", "seed: got -1"),
    "a NaN": (TIES + "parameters: {lambda: .nan}", "parameters.lambda: got nan"),
    "text": (TIES + "parameters: {lambda: much}", "parameters.lambda: got 'much'"),
    "an empty gradient": (TIES + "parameters: {t: []}", "parameters.t: got an empty list"),
    "a rule without a value": (
        TIES + "parameters: {t: [{filter: mlp}]}",
        r"parameters.t\[0\]: got",
    ),
    "a range": (
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]",
        r"slices\[0\].sources\[0\].layer_range: got",
    ),
    "ranges of other lengths": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}, "
        "{model: b, layer_range: [0, 2]}]}]",
        "all must have as many layers",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(name):
    text, message = FAULTS[name]
    with pytest.raises(MergeError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def setting(given):
    return parse_settings("parameters", {"t": given})["t"]


def test_the_first_rule_that_fits_a_name_counts():
    rules = setting([{"filter": "mlp", "value": 1}, {"filter": "*", "value": 2}])
    assert value_of(rules, "model.layers.0.mlp.up", 0.0) == 1
    assert value_of(rules, "model.norm", 0.0) == 2
    assert value_of(setting([{"filter": "mlp", "value": 1}]), "model.norm", 0.0) is None
    assert value_of(setting({"value": "1e-3"}), "model.norm", 0.0) == 0.001


@pytest.mark.parametrize(
    ("depth", "expected"), [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 2.25), (1.0, 4.0)]
)
def test_a_list_of_numbers_is_a_gradient(depth, expected):
    assert value_of(setting([0, 0.5, 4]), "w", depth) == expected
    assert value_of(setting([{"filter": "w", "value": [0, 0.5, 4]}]), "w", depth) == expected


def test_the_nearest_level_counts_and_one_without_a_fitting_rule_is_passed_over():
    near = {"t": setting([{"filter": "mlp", "value": 1}])}
    far = {"t": setting(2)}
    assert resolve("t", (near, far), "mlp.up", 0.0) == 1
    assert resolve("t", (near, far), "norm", 0.0) == 2
    assert resolve("s", (near, far), "norm", 0.0) is None
