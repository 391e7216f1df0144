"""A recipe: mergekit's YAML for the methods both have, and a few keys of our own, checked.

docs/merging.md says what each key does. Everything is checked that can be without the models; what
is not known is an error, so that no recipe is read as something else than it says.
"""

import hashlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kd_jax.merging.disk.errors import MergeError
from kd_jax.merging.disk.parameters import Settings, parse_settings

DTYPES = ("float16", "bfloat16", "float32", "float64")
_KEYS = {
    *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "threshold", "seed", "allow_nan", "max_shard_size", "shapes", "missing"),
}
_UNSUPPORTED = {  # keys of mergekit's that are not, each with what to do
    "modules": "give models or slices",
    "tokenizer": "give tokenizer_source: base, or nothing",
    "chat_template": "change the tokeniser's files after the merge",
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


class Source(NamedTuple):
    """A model in a slice; layers: the half-open range of its layers, None for all."""

    model: str
    layers: tuple[int, int] | None
    parameters: Settings


class Slice(NamedTuple):
    """Layers of the output and the models they are merged from."""

    sources: tuple[Source, ...]
    base: str | None
    parameters: Settings


class Recipe(NamedTuple):
    """A checked recipe. text: the file as it is; stacked: slices were given, not models."""

    text: str
    method: str
    slices: tuple[Slice, ...]
    stacked: bool
    base: str | None
    parameters: Settings
    dtype: str | None
    tokenizer_source: str | None
    flat: bool
    seed: int
    allow_nan: bool
    max_shard_bytes: int
    shapes: str
    missing: str

    @property
    def models(self) -> list[str]:
        """Every model named, the base first, each once."""
        named = [self.base] if self.base else []
        for piece in self.slices:
            named += [piece.base] if piece.base else []
            named += [source.model for source in piece.sources]
        return list(dict.fromkeys(named))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_recipe(path: Path, methods: frozenset[str]) -> Recipe:
    """The recipe of a file; MergeError, one line naming the key, for anything wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{path}: cannot be read ({error})") from None
    return parse_recipe(text, methods, name=str(path))


def parse_recipe(text: str, methods: frozenset[str], *, name: str = "recipe") -> Recipe:
    """As `read_recipe`, of the file's text."""
    try:
        given = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MergeError(f"{name}: not YAML as it should be ({_one_line(error)})") from None
    _check_keys(name, given, _KEYS, {"merge_method"})
    given = {key: value for key, value in given.items() if value is not None}
    method = given.get("merge_method")
    if method not in methods:
        raise MergeError(f"merge_method: got {method!r}, takes one of {', '.join(sorted(methods))}")
    base = _model("base_model", given.get("base_model"))
    stacked = "slices" in given
    if stacked == ("models" in given):
        raise MergeError("models, slices: a recipe takes exactly one of them")
    slices = _slices(given["slices"]) if stacked else (_whole(given["models"]),)
    dtype = _choice(given, "dtype", DTYPES)
    return Recipe(
        text=text,
        method=method,
        slices=slices,
        stacked=stacked,
        base=base,
        parameters=parse_settings("parameters", given.get("parameters")),
        dtype=_choice(given, "out_dtype", DTYPES, dtype),
        tokenizer_source=_choice(given, "tokenizer_source", ("base",)),
        flat=_choice(given, "threshold", ("tensor", "flat"), "tensor") == "flat",
        seed=_natural("seed", given.get("seed", 0)),
        allow_nan=_choice(given, "allow_nan", (True, False), False),
        max_shard_bytes=_size("max_shard_size", given.get("max_shard_size", "5GB")),
        shapes=_choice(given, "shapes", ("error", "pad", "intersect"), "error"),
        missing=_choice(given, "missing", ("error", "copy"), "error"),
    )


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML forbids and PyYAML does not notice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for i, key in enumerate(keys):
        if not isinstance(key, Hashable):
            raise ValueError(f"{key!r} cannot be a key")
        if key in keys[:i]:
            raise ValueError(f"{key!r} is given twice, line {node.start_mark.line + 1}")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_keys(where: str, given: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(given, dict):
        raise MergeError(f"{where}: got {given!r}, takes keys with their values")
    for key in given:
        if key in _UNSUPPORTED:
            raise MergeError(f"{key}: not supported here; {_UNSUPPORTED[key]}")
        if key not in known:
            raise MergeError(f"{where}: unknown key {key!r}, takes {', '.join(sorted(known))}")
    for key in sorted(needed - set(given)):
        raise MergeError(f"{where}: {key} is missing")


def _choice(given: dict[str, Any], key: str, choices: tuple[Any, ...], default: Any = None) -> Any:
    value = given.get(key, default)
    if isinstance(value, str):
        value = value.removeprefix("torch.")  # of a dtype
    if value != default and value not in choices:
        raise MergeError(f"{key}: got {value!r}, takes {' or '.join(map(str, choices))}")
    return value


def _natural(key: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise MergeError(f"{key}: got {value!r}, takes a whole number from 0 on")
    return value


def _size(key: str, value: Any) -> int:
    text = str(value).strip().upper()
    for unit in (text[-2:], text[-1:], ""):
        number = text.removesuffix(unit)
        factor = _UNITS.get(unit if unit == "B" else unit.removesuffix("B"))
        if factor and number.isdecimal() and int(number) > 0:
            return int(number) * factor
    raise MergeError(f"{key}: got {value!r}, takes bytes, as 500MB or 5GB")


def _model(where: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise MergeError(f"{where}: got {value!r}, takes a model's folder")
    if "+" in value and not Path(value).is_dir():
        raise MergeError(f"{where}: {value!r}: adapters are not merged here, merge them first")
    return value


def _whole(given: Any) -> Slice:
    """The one slice of a recipe with models."""
    if not isinstance(given, list) or not given:
        raise MergeError(f"models: got {given!r}, takes a list of models")
    sources = []
    for i, item in enumerate(given):
        where = f"models[{i}]"
        _check_keys(where, item, {"model", "parameters"}, {"model"})
        settings = parse_settings(f"{where}.parameters", item.get("parameters"))
        model = _model(f"{where}.model", item["model"])
        if model is None:
            raise MergeError(f"{where}.model: got nothing, takes a model's folder")
        sources.append(Source(model, None, settings))
    _check_once("models", sources)
    return Slice(tuple(sources), None, {})


def _slices(given: Any) -> tuple[Slice, ...]:
    if not isinstance(given, list) or not given:
        raise MergeError(f"slices: got {given!r}, takes a list of slices")
    slices = []
    for i, item in enumerate(given):
        where = f"slices[{i}]"
        _check_keys(where, item, {"sources", "base_model", "parameters"}, {"sources"})
        if not isinstance(item["sources"], list) or not item["sources"]:
            raise MergeError(f"{where}.sources: got {item['sources']!r}, takes a list of models")
        sources = tuple(_source(f"{where}.sources[{j}]", s) for j, s in enumerate(item["sources"]))
        _check_once(f"{where}.sources", sources)
        lengths = {stop - start for start, stop in (s.layers for s in sources if s.layers)}
        if len(lengths) != 1:
            raise MergeError(f"{where}.sources: layer_range: all must have as many layers")
        settings = parse_settings(f"{where}.parameters", item.get("parameters"))
        base = _model(f"{where}.base_model", item.get("base_model"))
        slices.append(Slice(sources, base, settings))
    return tuple(slices)


def _source(where: str, item: Any) -> Source:
    _check_keys(where, item, {"model", "layer_range", "parameters"}, {"model", "layer_range"})
    layers = item["layer_range"]
    sound = isinstance(layers, list) and len(layers) == 2 and all(type(v) is int for v in layers)
    if not sound or not 0 <= layers[0] < layers[1]:
        raise MergeError(f"{where}.layer_range: got {layers!r}, takes [first, one after the last]")
    model = _model(f"{where}.model", item["model"])
    if model is None:
        raise MergeError(f"{where}.model: got nothing, takes a model's folder")
    settings = parse_settings(f"{where}.parameters", item.get("parameters"))
    return Source(model, (layers[0], layers[1]), settings)


def _check_once(where: str, sources: Any) -> None:
    models = [source.model for source in sources]
    for model in models:
        if models.count(model) > 1:
            raise MergeError(f"{where}: {model} is given twice")
