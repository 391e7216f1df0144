"""Claims of divergence_zoo."""

from experiments.distillation.common.reporting import better
from kd_jax.launch.claims import Claim, above

_TRIED = (
    "600 steps at one rate for all losses, after which students are far from their teacher. Longer "
    "trainings, a rate for each loss and other sizes were not tried."
)

CLAIMS = (
    Claim(
        "A student of forward KL is nearer to the teacher on held-out text than one of text alone "
        "(difference of KL(teacher || student), above 0).",
        "arXiv 1503.02531, section 3",
        "qualitative, other data",
        better("forward", "alone", "forward"),
        above(0.0),
    ),
    Claim(
        "It predicts the text itself better too (difference of NLL, above 0).",
        "arXiv 1503.02531, section 4",
        "speech: 58.9 % of frames without, 60.8 % with the ensemble's targets",
        better("forward", "alone", "nll"),
        above(0.0),
    ),
    Claim(
        "Reverse KL makes KL(student || teacher) smaller than forward KL does, on what the student "
        "writes (difference, above 0).",
        "arXiv 2306.08543, section 2 (why reverse KL)",
        "qualitative: mode seeking",
        better("reverse", "forward", "own_reverse"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "Skew KL is nearer to the teacher than forward KL on the student's own text (difference of "
        "KL(student || teacher), above 0).",
        "arXiv 2402.03898 (tables UNVERIFIED)",
        "better than forward KL on instruction following",
        better("skew", "forward", "own_reverse"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "Adaptive KL is nearer to the teacher than forward KL on held-out text (difference of "
        "KL(teacher || student), above 0).",
        "arXiv 2404.02657 (tables UNVERIFIED)",
        "better than forward and reverse KL",
        better("adaptive", "forward", "forward"),
        above(0.0),
        _TRIED,
    ),
    Claim(
        "TAID predicts the text better than forward KL (difference of NLL, above 0).",
        "arXiv 2501.16937 (tables UNVERIFIED)",
        "better than all of these on instruction tuning",
        better("taid", "forward", "nll"),
        above(0.0),
        _TRIED,
    ),
)
