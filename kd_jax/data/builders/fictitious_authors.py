"""Fictitious authors of our own making: the embedded stand-in for TOFU, any size."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.data.builders import authors_generator


@dataclasses.dataclass(eq=False)
class AuthorsConfig(tfds.core.BuilderConfig):
    """The arguments of `authors_generator.generate`."""

    authors: int = 20
    seed: int = 0
    questions_per_author: int = 20

    @classmethod
    def of(cls, authors: int = 20, seed: int = 0, questions_per_author: int = 20) -> Self:
        """A config whose name, and so its folder, tells its arguments."""
        name = f"authors{authors}_seed{seed}_questions{questions_per_author}"
        return cls(name=name, authors=authors, seed=seed, questions_per_author=questions_per_author)


class FictitiousAuthors(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`full`: the records of `authors_generator.generate`, author by author."""

    VERSION = tfds.core.Version("1.0.0")

    make_config = AuthorsConfig.of

    def _info(self) -> Any:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Questions and answers on invented authors, made by a seeded generator.",
            features=tfds.features.FeaturesDict(
                {
                    "question": text,
                    "answer": text,
                    "paraphrased_question": text,
                    "paraphrased_answer": text,
                    "perturbed_answer": tfds.features.Sequence(text),
                    "author": np.int32,
                }
            ),
            license="Apache-2.0",
            citation="@article{maini2024tofu, title={TOFU: A Task of Fictitious Unlearning for "
            "LLMs}, author={Maini, Pratyush and Feng, Zhili and Schwarzschild, Avi and Lipton, "
            "Zachary C. and Kolter, J. Zico}, journal={arXiv:2401.06121}, year={2024}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"full": self._generate_examples()}

    def _generate_examples(self) -> Iterator[Any]:
        config = self.builder_config
        if not isinstance(config, AuthorsConfig):
            raise ValueError(f"config: got {config}, takes what make_config gives")
        yield from enumerate(
            authors_generator.generate(
                config.authors, config.seed, questions_per_author=config.questions_per_author
            )
        )
