"""The losses of the zoo, each with the strengths that are tried."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.preference import apart, free, margin, regularised, self_play, tokens, transport
from kd_jax.losses.preference import logic as formulas
from kd_jax.losses.preference.pairs import Pairs, log_ratios, per_token
from kd_jax.losses.preference.unpaired import bco, kto


class Seen(NamedTuple):
    """All that a loss may read of N pairs; each [N] unless said otherwise.

    shared: log-probabilities of the first min(L_c, L_r) tokens. chosen_kl, rejected_kl: sums of
    KL(reference || policy) over the completion's positions. own: WPO's weight of the pair.
    mismatched [2 N]: log policy / reference of completions of other prompts. shift: of BCO.
    """

    pairs: Pairs
    shared: Pairs
    chosen_kl: jax.Array
    rejected_kl: jax.Array
    own: jax.Array
    mismatched: jax.Array
    shift: jax.Array


class Method(NamedTuple):
    """loss(seen, beta) -> [N]. betas: four strengths, of which tuning seeds choose."""

    label: str
    kind: str
    loss: Callable[[Seen, jax.Array], jax.Array]
    betas: tuple[float, float, float, float]


def _of_pairs(loss: Callable[..., jax.Array], **fixed) -> Callable[[Seen, jax.Array], jax.Array]:
    return lambda seen, beta: loss(seen.pairs, beta=beta, **fixed)


def _with_likelihood(loss: Callable[..., jax.Array], **fixed):
    """With the NLL of the chosen, a mean over its own tokens."""

    def both(seen: Seen, beta: jax.Array) -> jax.Array:
        return loss(seen.pairs, beta=beta, **fixed) + regularised.sft(per_token(seen.pairs))

    return both


def _kto(seen: Seen, beta: jax.Array) -> jax.Array:
    c, r = log_ratios(seen.pairs)
    baseline, good = seen.mismatched.mean(), jnp.ones(c.size, bool)
    return kto(c, good, baseline, beta=beta) + kto(r, ~good, baseline, beta=beta)


def _bco(seen: Seen, beta: jax.Array) -> jax.Array:
    c, r = log_ratios(seen.pairs)
    shift, good = beta * seen.shift, jnp.ones(c.size, bool)
    return bco(c, good, shift, beta=beta) + bco(r, ~good, shift, beta=beta)


def _f_dpo(score: Callable[[jax.Array], jax.Array]):
    return lambda seen, beta: apart.f_dpo(seen.pairs, score, beta=beta)


def _mpo(seen: Seen, beta: jax.Array) -> jax.Array:
    parts = (
        (0.8, lambda pairs: margin.dpo(pairs, beta=beta)),
        (0.2, lambda pairs: apart.bco_pair(pairs, beta=beta)),
        (1.0, lambda pairs: regularised.sft(per_token(pairs))),
    )
    return regularised.mixture(*parts)(seen.pairs)


def _formula(structure: formulas.Structure):
    return lambda seen, beta: formulas.loss_of(structure, beta=beta)(per_token(seen.pairs))


def _all(seen: Seen) -> jax.Array:
    return jnp.ones_like(seen.own)


# Of losses of sums over tokens and of means; a completion has up to four tokens.
SUMS, MEANS = (0.03, 0.1, 0.3, 1.0), (0.15, 0.5, 2.0, 8.0)
NONE = (1.0, 1.0, 1.0, 1.0)
METHODS = {
    "sft": Method("SFT on the chosen", "likelihood", lambda s, _: regularised.sft(s.pairs), NONE),
    "dpo": Method("DPO", "margin", _of_pairs(margin.dpo), SUMS),
    "cdpo": Method("cDPO", "margin", _of_pairs(margin.cdpo, smoothing=0.1), SUMS),
    "robust": Method("robust DPO", "margin", _of_pairs(margin.robust_dpo, flips=0.1), SUMS),
    "ipo": Method("IPO", "margin", lambda s, tau: margin.ipo(per_token(s.pairs), tau=tau), SUMS),
    "ipo_sums": Method("IPO of sums", "margin", lambda s, tau: margin.ipo(s.pairs, tau=tau), SUMS),
    "hinge": Method("hinge", "margin", _of_pairs(margin.hinge), SUMS),
    "exo": Method("EXO", "margin", _of_pairs(margin.exo), SUMS),
    "discopop": Method("DiscoPOP", "margin", _of_pairs(margin.discopop), SUMS),
    "r_dpo": Method("R-DPO", "margin", _of_pairs(margin.r_dpo, alpha=0.05), SUMS),
    "dpo_means": Method(
        "DPO, length-normalised", "margin", _of_pairs(margin.length_normalised_dpo), MEANS
    ),
    "tdpo1": Method(
        "TDPO1",
        "tokens",
        lambda s, beta: tokens.tdpo1(s.pairs, s.chosen_kl, s.rejected_kl, beta=beta),
        SUMS,
    ),
    "tdpo2": Method(
        "TDPO2",
        "tokens",
        lambda s, beta: tokens.tdpo2(s.pairs, s.chosen_kl, s.rejected_kl, beta=beta),
        SUMS,
    ),
    "ld_dpo": Method(
        "LD-DPO",
        "tokens",
        lambda s, beta: tokens.ld_dpo(s.pairs, s.shared, beta=beta, alpha=0.5),
        SUMS,
    ),
    "wpo": Method("WPO", "tokens", lambda s, b: s.own * margin.dpo(s.pairs, beta=b), SUMS),
    "aot": Method("AOT", "batch", lambda s, beta: transport.aot(s.pairs, _all(s), beta=beta), SUMS),
    "aot_unpaired": Method(
        "AOT, unpaired",
        "batch",
        lambda s, beta: transport.aot_unpaired(s.pairs, _all(s), beta=beta),
        SUMS,
    ),
    "nca": Method("NCA", "apart", _of_pairs(apart.nca), SUMS),
    "bco_pair": Method("BCO pair", "apart", _of_pairs(apart.bco_pair), SUMS),
    "apo_zero": Method("APO-zero", "apart", _of_pairs(apart.apo_zero), SUMS),
    "apo_down": Method("APO-down", "apart", _of_pairs(apart.apo_down), SUMS),
    "sppo": Method("SPPO", "apart", _of_pairs(self_play.sppo_hard), SUMS),
    "dpop": Method("DPO-positive", "apart", _of_pairs(apart.dpop, penalty=50.0), SUMS),
    "f_forward": Method("f-DPO, forward KL", "apart", _f_dpo(apart.power(-1.0)), SUMS),
    "f_js": Method("f-DPO, Jensen-Shannon", "apart", _f_dpo(jax.nn.log_sigmoid), SUMS),
    "f_alpha": Method("f-DPO, alpha 1/2", "apart", _f_dpo(apart.power(-0.5)), SUMS),
    "kto": Method("KTO", "unpaired", _kto, SUMS),
    "bco": Method("BCO", "unpaired", _bco, SUMS),
    "rpo": Method("RPO", "likelihood", _of_pairs(regularised.rpo, eta=1.0), SUMS),
    "rpo_averaged": Method(
        "RPO, averaged", "likelihood", _of_pairs(regularised.rpo_averaged, coefficient=0.2), SUMS
    ),
    "mpo": Method("MPO", "likelihood", _mpo, SUMS),
    "cpo": Method("CPO", "likelihood", _with_likelihood(free.cpo), SUMS),
    "orpo": Method("ORPO", "likelihood", _with_likelihood(free.orpo), SUMS),
    "rrhf": Method(
        "RRHF",
        "likelihood",
        lambda s, beta: free.rrhf(s.pairs) + beta * regularised.sft(per_token(s.pairs)),
        SUMS,
    ),
    "slic": Method("SLiC", "likelihood", lambda s, b: free.slic(s.pairs, regulariser=b), SUMS),
    "simpo": Method("SimPO", "free", _of_pairs(free.simpo, gamma=1.0), MEANS),
    "alphapo": Method("AlphaPO", "free", _of_pairs(free.alphapo, gamma=1.0, alpha=0.25), MEANS),
    "unlikelihood": Method("CE + unlikelihood", "formula", _formula(formulas.UNLIKELIHOOD), MEANS),
    "cpo_formula": Method("CPO's formula", "formula", _formula(formulas.CPO), MEANS),
    "orpo_formula": Method("ORPO's formula", "formula", _formula(formulas.ORPO), MEANS),
    "ccpo": Method("constrained CPO", "formula", _formula(formulas.CONSTRAINED_CPO), MEANS),
    "uncpo": Method("unconstrained CPO", "formula", _formula(formulas.UNCONSTRAINED_CPO), MEANS),
}
