"""What all unlearning experiments on questions and answers are told."""

import dataclasses

import tyro

from experiments.unlearning.common import lm, qa
from experiments.unlearning.common.learning import Learning
from kd_jax.launch.config import Settings, check_positive
from kd_jax.models import decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Settings):
    model: str | None = None
    """Folder or GGUF file of a pretrained model, or "smollm2"; none trains a small one."""
    decoder: tyro.conf.Fixed[tyro.conf.Suppress[decoder.DecoderConfig]]
    """The model from scratch, or what a plan takes for a model that is not there."""
    data: qa.Data = qa.Data()
    adapter: lm.Adapter = lm.Adapter()
    finetune: Learning
    """Learning the authors, all of them and (retrained) those to keep."""
    unlearn: Learning
    """Forgetting; an epoch is a pass over the forget set."""
    beta: float = 0.1
    """NPO's inverse temperature; towards 0 it becomes gradient ascent."""
    microbatches: int = 1
    """Parts into which each batch is cut to save memory."""
    evaluations: int = 6
    """Measurements along each training, after the one at its start."""
    evaluate_retain: int = 40
    """Questions to keep that are measured."""
    wrong_answers: int = 5
    """Perturbed answers of each question in the truth ratio."""
    generate: int = 0
    """Tokens written in answer to each question, for ROUGE; 0 writes none."""
    general: int = 0
    """TOFU's questions about real authors and about the world that are measured, so many of each;
    they come with TOFU's authors."""
    score_batch: int = 16
    """Rows in a scoring batch."""
    seeds: int = 1
    """Repetitions of everything, fine-tuning included."""
    seed: int = 0
    """Of the first repetition."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "beta", "microbatches", "evaluations", "evaluate_retain")
        check_positive(self, "score_batch", "seeds")
        for name in ("wrong_answers", "generate", "general"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, takes numbers from 0")
        for rows in (self.finetune.batch_size, self.unlearn.batch_size):
            if rows % self.microbatches:
                raise ValueError(f"microbatches: got {self.microbatches}, takes divisors of {rows}")

    @property
    def wrong(self) -> int:
        return min(self.wrong_answers, self.data.perturbed)

    @property
    def repetitions(self) -> range:
        """The seed of each repetition."""
        return range(self.seed, self.seed + self.seeds)
