"""The golden batch of preference losses, and every golden loss as a function of its pairs."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.preference import apart, free, links, margin, regularised, tokens, transport
from kd_jax.losses.preference.pairs import Pairs, log_ratios, per_token
from kd_jax.losses.preference.self_play import inpo, sppo, sppo_hard
from kd_jax.losses.preference.unpaired import bco, kto

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "preference.json").read_text())
BATCH = Pairs(**{name: jnp.array(value, jnp.float32) for name, value in GOLDEN["inputs"].items()})
MORE = {name: jnp.array(value) for name, value in GOLDEN["more"].items()}
KL = MORE["chosen_kl"], MORE["rejected_kl"]
ITERATE = MORE["iterate_chosen"], MORE["iterate_rejected"]
BASELINE = (MORE["mismatched_policy"] - MORE["mismatched_reference"]).mean()
YES, NO, ALL = jnp.ones(4, bool), jnp.zeros(4, bool), jnp.ones(4)


def both(loss):
    """A loss of rows as one of pairs: the chosen desirable, the rejected undesirable."""

    def of_pairs(pairs):
        c, r = log_ratios(pairs)
        return loss(c, YES[: c.size]) + loss(r, NO[: r.size])

    return of_pairs


def bco_with_its_shift(pairs, beta):
    rewards = beta * jnp.concatenate(log_ratios(pairs))
    return both(partial(bco, shift=rewards.mean(), beta=beta))(pairs)


def parameters(name):
    return GOLDEN["losses"][name]["parameters"]


WIN, LOSE = (jnp.array(parameters("sppo_soft")[name]) for name in ("p_win", "p_lose"))
ZOO = {
    "dpo": partial(margin.dpo, beta=0.1),
    "dpo_beta1": partial(margin.dpo, beta=1.0),
    "cdpo": partial(margin.cdpo, beta=0.1, smoothing=0.1),
    "robust_dpo": partial(margin.robust_dpo, beta=0.1, flips=0.1),
    "ipo_sum": partial(margin.ipo, tau=0.1),
    "ipo_lengthnorm": lambda pairs: margin.ipo(per_token(pairs), tau=0.1),
    "hinge_dpo": partial(margin.hinge, beta=0.1),
    "slic_noref": partial(free.slic, delta=1.0, regulariser=0.0),
    "exo_pair": partial(margin.exo, beta=0.1),
    "nca_pair": partial(apart.nca, beta=0.1),
    "bco_pair_nodelta": partial(apart.bco_pair, beta=0.1),
    "sppo_hard": partial(sppo_hard, beta=0.1),
    "sppo_soft": lambda pairs: sppo(pairs, WIN, LOSE, beta=0.1),
    "aot_paired_sorted": lambda pairs: transport.aot(pairs, ALL, beta=0.1),
    "aot_unpaired_sorted": lambda pairs: transport.aot_unpaired(pairs, ALL, beta=0.1),
    "apo_zero": partial(apart.apo_zero, beta=0.1),
    "apo_down": partial(apart.apo_down, beta=0.1),
    "discopop": partial(margin.discopop, beta=0.1),
    "sigmoid_norm": partial(margin.length_normalised_dpo, beta=0.1),
    "fdpo_forward_kl": partial(apart.f_dpo, score=apart.power(-1.0), beta=0.1),
    "fdpo_js": partial(apart.f_dpo, score=jax.nn.log_sigmoid, beta=0.1),
    "fdpo_alpha0.5": partial(apart.f_dpo, score=apart.power(0.5 - 1), beta=0.1),
    "dpop": partial(apart.dpop, beta=0.3, penalty=50.0),
    "tdpo1": lambda pairs: tokens.tdpo1(pairs, *KL, beta=0.1),
    "tdpo2": lambda pairs: tokens.tdpo2(pairs, *KL, beta=0.1),
    "rdpo_length": partial(margin.r_dpo, beta=0.1, alpha=0.01),
    "simpo": partial(free.simpo, beta=2.0, gamma=1.0),
    "cpo_sigmoid": partial(free.cpo, beta=0.1),
    "orpo_or_term": partial(free.orpo, beta=0.1),
    "rrhf_rank_pair": free.rrhf,
    "rpo_sumSFT": partial(regularised.rpo, beta=0.1, eta=0.005),
    "inpo": lambda pairs: inpo(pairs, *ITERATE, eta=0.5, tau=1 / 6),
    "inpo_paper_eta": lambda pairs: inpo(pairs, *ITERATE, eta=0.005, tau=0.005 / 3),
    "kto_chosen_plus_rejected": both(partial(kto, baseline=BASELINE, beta=0.1)),
    "bco_first_batch_delta": partial(bco_with_its_shift, beta=0.1),
}
# What the same losses are at policy = reference.
AT_REFERENCE = {
    "dpo": 0.693147,
    "dpo_beta1": 0.693147,
    "cdpo": 0.693147,
    "robust_dpo": 0.693147,
    "ipo_sum": 25.0,
    "ipo_lengthnorm": 25.0,
    "hinge_dpo": 1.0,
    "nca_pair": 1.386294,
    "bco_pair_nodelta": 1.386294,
    "bco_first_batch_delta": 1.386294,
    "sppo_hard": 50.0,
    "aot_paired_sorted": 0.693147,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.846574,
    "sigmoid_norm": 0.693147,
    "fdpo_forward_kl": 0.693147,
    "fdpo_js": 0.693147,
    "fdpo_alpha0.5": 0.693147,
    "dpop": 0.693147,
}
SMOOTHED = partial(links.smoothed, smoothing=0.1)


def random_pairs(seed, count=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, (2, count)).astype(np.float32)
    policy, reference = -rng.uniform(0.05, 3.0, (2, 2, count)).astype(np.float32) * lengths
    return Pairs(*map(jnp.asarray, (*policy, *reference, *lengths)))
