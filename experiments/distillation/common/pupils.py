"""Stages of classifiers: a teacher, what it says of every image, and students of several seeds.

Students of one kind differ in initial weights and order of images, and are trained side by side in
one program.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.distillation.common import endings
from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common.classifiers import Classifier, classifier
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.pictures import Pictures
from kd_jax.data import shapes, sources
from kd_jax.launch import output_cache, precompute, weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.stages import REPLICATED, Stage, Training
from kd_jax.objectives.distil import student_state
from kd_jax.objectives.on_policy import Prepare
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import label_cross_entropy
from kd_jax.repetition import Over, repeated, repeated_prepare, side_by_side
from kd_jax.steps import make_train_step
from kd_jax.types import Model, TrainStep

PyTree = Any
Found = Mapping[str, Artefact]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schooling(Settings):
    """A teacher learns some images; students of several seeds learn them from it."""

    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    learn_teacher: Learning
    learn: Learning
    """How a student learns."""
    seeds: int = 5
    """Students of each kind; seed s fixes initial weights and the order of images."""
    seed: int = 0
    """The first of them."""
    score_batch: int = 500
    """Images measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "score_batch")
        if self.seeds < 2:
            raise ValueError(f"seeds: got {self.seeds}, takes at least 2: intervals are over seeds")

    def model(self, network: Classifier | Model) -> Model:
        """Of images as they are, folded inside; a model stays as it is."""
        return network if isinstance(network, Model) else classifier(network, self.pictures.fold)

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


def teacher(
    config: Schooling,
    network: Classifier,
    *,
    name: str = "teacher",
    seed: int = 1000,
    fold: int | None = None,
    step: TrainStep | None = None,
    prepare: Prepare | None = None,
    images: Callable[[int], dict[str, np.ndarray]] | None = None,
    more: Any = None,
) -> Stage:
    """A classifier of the training images; its artefact is {"teacher": ..., "teacher_state": ...}.

    fold: of its images, by default the students'. step, prepare: of a training other than on
    cross-entropy; images(seed) -> an image batch, other ones than the students'; more: plain data
    that names these.
    """
    fold, learning = fold or config.pictures.fold, config.learn_teacher
    model = classifier(network, fold)

    def build(_: Found) -> Training:
        objective = supervise(model, {"ce": label_cross_entropy})
        own = step or make_train_step(objective, learning.optimizer())
        training = students(
            config, model, own, learning=learning, prepare=prepare, seeds=(seed,), images=images
        )
        return training._replace(
            result=lambda reached, _: jax.tree.map(
                lambda x: x[0],
                {
                    "teacher": reached.params["model"],
                    "teacher_state": student_state(reached.carry),
                },
            )
        )

    shared = {"pictures": identity(config.pictures), "seed": seed, "fold": fold, "more": more}
    return Stage(
        name, build, (), shared | {"network": _named(network), "learn": identity(learning)}
    )


def outputs(
    config: Schooling, network: Classifier | Model, taps: Sequence[str], *, of: str = "teacher"
) -> Stage:
    """What the teacher of stage `of` says of every training image: logits and taps, on disk.

    network: or a model, one that is no classifier alone.
    """
    return output_cache.stage(
        f"{of}_outputs",
        model=config.model(network),
        weights=lambda found: found[of].weights(),
        teacher=lambda found: precompute.model_hash(found[of]),
        data=lambda: pictures_lib.load(config.pictures).train,
        batch=batch_shapes(config, config.score_batch),
        mesh=config.mesh,
        taps=taps,
        needs=(of,),
        depends={"taps": list(taps)},
    )


class Read(NamedTuple):
    """Stored outputs that come with the batch: of stage `of` and its `outputs`.

    network: the teacher's, or its model. stored: the taps that are stored; taps: those that are
    read.
    """

    network: Classifier | Model
    stored: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    of: str = "teacher"


def depends(config: Schooling, network: Classifier, **more: Any) -> dict[str, Any]:
    """What students depend on besides the stages they need."""
    return {
        "network": _named(network),
        "pictures": identity(config.pictures),
        "learn": identity(config.learn),
        "seeds": list(config.repetitions),
        **more,
    }


def students(
    config: Schooling,
    model: Model,
    step: TrainStep,
    found: Found = {},
    *,
    seeds: Sequence[int] | None = None,
    learning: Learning | None = None,
    read: Read | None = None,
    frozen: weights.Weights | None = None,
    own: Sequence[str] = (),
    start: weights.Weights | None = None,
    images: Callable[[int], dict[str, np.ndarray]] | None = None,
    prepare: Prepare | None = None,
    state: Callable[[PyTree], PyTree] = student_state,
    over: Over = side_by_side,
) -> Training:
    """Students of all seeds, side by side: leaves of weights are [S, ...], of batches [B, S, ...].

    The artefact is {"model": ..., "state": ...} [S, ...]; `endings.ending` reads how well they do.
    model: what is measured, and initialised. step: of one student. seeds, learning (what step was
    made with): the config's by default. read: a teacher's outputs that come with the batch. frozen:
    what is read, by all students or, where named in `own`, one of [S, ...] each. start: weights
    [S, ...] to go on from. images(seed) -> an image batch, by default all training images. prepare:
    of one student. state: of the step's carry, the model's own. over: `repetition.batched` for
    networks without convolutions on large maps.
    """
    learning, seeds = learning or config.learn, seeds or config.repetitions
    size = learning.batch_size

    def abreast() -> sources.Source:
        cache = None if read is None else _cache(config, read, found)

        def one(seed: int) -> sources.Source:
            rows = _order(config, learning, seed, images and images(seed))
            return rows if cache is None else output_cache.joined(rows, cache, batch_size=size)

        return sources.abreast([one(seed) for seed in seeds])

    batch = batch_shapes(config, size)
    if read is not None:
        batch |= output_cache.shapes(config.model(read.network), batch, read.taps)
    abreast_shapes = {
        name: jax.ShapeDtypeStruct((size, len(seeds), *x.shape[1:]), x.dtype)
        for name, x in batch.items()
    }
    return Training(
        step=repeated(step, len(seeds), own=own, over=over),
        weights=start or fresh(model, seeds),
        batches=_lazily(abreast),
        batch=abreast_shapes,
        batch_size=size,
        steps=learning.steps,
        rules=REPLICATED,
        frozen=frozen,
        frozen_rules={} if frozen is None else dict.fromkeys(frozen.abstract, REPLICATED),
        seed=seeds[0],
        evaluations=endings.tested(
            config.pictures, model, state, learning.steps, rows=config.score_batch
        ),
        prepare=None if prepare is None else repeated_prepare(prepare, len(seeds), over=over),
        result=lambda reached, _: {
            "model": reached.params["model"],
            "state": state(reached.carry),
        },
    )


def fresh(model: Model, seeds: Sequence[int]) -> weights.Weights:
    """Initial weights [S, ...], those of each seed."""

    def init(numbers: jax.Array) -> PyTree:
        return jax.vmap(lambda seed: model.init(jax.random.key(seed)))(numbers)

    return weights.from_init(init, np.array(seeds, np.int32))


def batch_shapes(config: Schooling, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    return shapes.images(rows, config.pictures.side)


def _cache(config: Schooling, read: Read, found: Found) -> output_cache.Cache:
    about = output_cache.About(
        precompute.model_hash(found[read.of]),
        precompute.data_hash(pictures_lib.load(config.pictures).train),
        read.stored,
    )
    return output_cache.opened(found[f"{read.of}_outputs"].files, about, only=read.taps)


def _order(
    config: Schooling, learning: Learning, seed: int, rows: dict[str, np.ndarray] | None = None
) -> sources.Source:
    rows = pictures_lib.load(config.pictures).train if rows is None else rows
    return sources.array_batches(rows, seed=seed, name="images", batch_size=learning.batch_size)


def _lazily(make: Callable[[], sources.Source]) -> sources.Source:
    """The source, made when the first batch is wanted: a plan wants none."""
    held = functools.cache(make)
    return lambda step, rows: held()(step, rows)


def _named(network: Classifier) -> dict[str, Any]:
    return {"kind": type(network).__name__, **identity(network)}
