import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.tiny_decoders import TINY, assert_equal, draw, logits, write, write_gguf

from kd_jax import trees
from kd_jax.formats import huggingface
from kd_jax.formats.tensors import count
from kd_jax.models import layout
from kd_jax.models.pretrained import export_folder, open_pretrained
from kd_jax.models.pretrained_config import config_from_hf


@pytest.mark.parametrize("name", TINY["models"])
def test_logits_are_those_of_transformers(tmp_path, name):
    model = open_pretrained(write(tmp_path / name, name))
    found = logits(model.config, model.make(model.abstract), TINY["ids"])
    first, second = TINY["models"][name]["logits"]
    np.testing.assert_allclose(found[0, 2::4, ::2], first, rtol=1e-5, atol=3e-5)
    np.testing.assert_allclose(found[1, -1, ::2], second, rtol=1e-5, atol=3e-5)
    assert model.max_length == 64


def test_layers_may_be_unrolled(tmp_path):
    folder = write(tmp_path / "m", "qwen3")
    stacked, unrolled = open_pretrained(folder), open_pretrained(folder, scan=False)
    assert_equal(
        layout.stack(unrolled.make(unrolled.abstract)), dict(stacked.make(stacked.abstract))
    )


@pytest.mark.parametrize("name", ["llama", "linear_scaling", "qwen2", "qwen3"])
def test_gguf_holds_the_same_model(tmp_path, name):
    found = open_pretrained(write_gguf(tmp_path / "m.gguf", name))
    expected = open_pretrained(write(tmp_path / "m", name))
    # GGUF keeps numbers of the config as float32.
    config = dataclasses.replace(found.config, norm_eps=expected.config.norm_eps)
    assert config == expected.config
    assert_equal(found.make(found.abstract), expected.make(expected.abstract))
    assert found.max_length == 64


def placed(abstract, names):
    """abstract on 2 x 2 x 2 devices: the last axis over c, the one before it over b, layers over
    a; axes that do not divide stay whole."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("a", "b", "c"))

    def place(leaf):
        axes = [None] * len(leaf.shape)
        for axis, name in zip(range(len(axes) - 1, -1, -1), names, strict=False):
            ways = 2 ** len(name) if name else 1
            axes[axis] = name if leaf.shape[axis] % ways == 0 else None
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, abstract)


@pytest.mark.parametrize("names", [("c", "b", "a"), (("b", "c"), None, "a"), (None, ("a", "b"))])
@pytest.mark.parametrize("quantised", [False, True])
def test_shards_are_parts_of_the_whole(tmp_path, names, quantised):
    if quantised:
        kind = gguf.GGMLQuantizationType.Q8_0
        model = open_pretrained(write_gguf(tmp_path / "m.gguf", "llama", kind))
    else:
        model = open_pretrained(write(tmp_path / "m"))
    whole = model.make(model.abstract)
    tree = placed(model.abstract, names)
    found = model.make(tree)
    jax.tree.map(lambda x, leaf: x.sharding == leaf.sharding or pytest.fail(str(x)), found, tree)
    assert_equal(found, whole)


def test_each_device_reads_its_own_part_only(tmp_path, monkeypatch):
    read = []
    opened = huggingface.open_folder

    def watched(folder):
        def watch(tensor):
            def reading(index):
                found = tensor.read(index)
                read.append(found.size)
                return found

            return dataclasses.replace(tensor, read=reading)

        return {name: watch(tensor) for name, tensor in opened(folder).items()}

    monkeypatch.setattr(huggingface, "open_folder", watched)
    model = open_pretrained(write(tmp_path / "m"))
    assert read == []
    leaf = "layers/mlp/up/kernel"
    tree = placed(model.abstract, ("c", "b", "a"))
    model.make(tree)
    kernel = trees.flatten(tree)[leaf]
    assert sum(read) <= 8 * trees.size(model.abstract)  # replicated leaves are read by each
    assert max(read) < max(count(shape) for shape in TINY["models"]["llama"]["shapes"].values())
    part = count(kernel.shape) // 8
    assert read.count(part) >= 8


def test_dtypes_are_those_asked_for(tmp_path):
    model = open_pretrained(write(tmp_path / "m"), param_dtype="bfloat16")
    params = model.make(model.abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    expected = draw("model.norm.weight", (32,)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(params["final_norm"]["scale"], expected)


def test_a_donated_tree_does_not_touch_the_next(tmp_path):
    model = open_pretrained(write(tmp_path / "m"))
    first, second = model.make(model.abstract), model.make(model.abstract)
    expected = jax.tree.map(np.array, second)
    jax.block_until_ready(
        jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)(first)
    )
    assert_equal(second, expected)
    assert_equal(model.make(model.abstract), expected)


def test_other_trees_are_refused(tmp_path):
    model = open_pretrained(write(tmp_path / "m"))
    with pytest.raises(ValueError, match="unembed/embedding only in the file"):
        model.make({k: v for k, v in model.abstract.items() if k != "unembed"})


UP = "model__layers__1__mlp__up_proj__weight"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({UP: None}, r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (
            {UP: np.zeros((32, 48), np.float32)},
            r"up_proj\.weight has shape \(32, 48\), \(48, 32\) was expected",
        ),
        ({"extra__weight": np.zeros(3, np.float32)}, r"extra\.weight is left over"),
        (
            {"model__layers__2__input_layernorm__weight": np.zeros(32, np.float32)},
            r"model\.layers\.2\.input_layernorm\.weight is left over",
        ),
        (
            {"model__layers__0__self_attn__q_proj__bias": np.zeros(32, np.float32)},
            r"q_proj\.bias is left over",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        open_pretrained(write(tmp_path / "m", **changed))


def test_the_config_is_held_against_the_tensors(tmp_path):
    with pytest.raises(ValueError, match=r"lm_head\.weight is left over"):
        open_pretrained(write(tmp_path / "tied", config={"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="is said to have 1000000 layers, has 21 tensors"):
        open_pretrained(write(tmp_path / "deep", config={"num_hidden_layers": 1_000_000}))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has shape .* and 13 more"):
        open_pretrained(write(tmp_path / "wide", config={"hidden_size": 64, "head_dim": 8}))


def test_saved_rotary_frequencies_are_no_weights(tmp_path):
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    open_pretrained(write(tmp_path / "m", **{name: np.zeros(4, np.float32)}))


def test_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"config\.json: there is no such file"):
        open_pretrained(tmp_path)
    model = open_pretrained(write(tmp_path / "m"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: there is no such file"):
        model.tokenizer()


@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {"scan": False}), ("qwen2", {"param_dtype": "bfloat16"}), ("qwen3", {})],
)
def test_an_exported_folder_holds_the_same_tensors(tmp_path, name, options):
    model = open_pretrained(write(tmp_path / "m", name), **options)
    params = model.make(placed(model.abstract, ("c", "b", "a")))
    export_folder(tmp_path / "out", params, model.config, max_length=9, max_shard_bytes=9_000)
    again = open_pretrained(tmp_path / "out", **options)
    assert (again.config, again.max_length) == (model.config, 9)
    assert_equal(again.make(again.abstract), params)
    found = huggingface.open_folder(tmp_path / "out")
    given = huggingface.open_folder(tmp_path / "m")
    dtype = np.dtype(model.config.param_dtype)
    assert set(found) == set(given)
    for key, tensor in found.items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.read(...), given[key].read(...).astype(dtype))
    assert huggingface.read_json(tmp_path / "out" / "config.json")["torch_dtype"] == str(dtype)


def test_export_refuses_other_trees(tmp_path):
    config = config_from_hf(TINY["models"]["llama"]["config"])
    with pytest.raises(ValueError, match="params and config differ"):
        export_folder(tmp_path / "x", {"a": np.zeros(2, np.float32)}, config, max_length=8)
