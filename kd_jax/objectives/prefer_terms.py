"""Terms that `prefer` takes beside losses of pairs: regularisers, losses of tokens, diagnostics.

cpo = {"cpo": functools.partial(free.cpo, beta=0.1), "nll": chosen_nll(1.0)}
prefer(model, cpo, references.online(model), metrics={"kl": kl_to_reference()})

All are made from the one forward pass of `prefer`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.divergences import forward_kl, reverse_kl
from kd_jax.losses.preference import tokens
from kd_jax.losses.preference.pairs import PairLoss, Pairs, lengths, per_token
from kd_jax.losses.preference.regularised import sft
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.objectives.prefer import (
    PairTerm,
    Seen,
    Statistic,
    predictions,
    reference_log_prob,
    sides,
)
from kd_jax.types import Term, weighted_sum

# --- statistics of positions ---


def kl_from_reference(
    logits: jax.Array, reference: jax.Array | None, targets: jax.Array
) -> jax.Array:
    """KL(reference || policy) of every position, over the whole vocabulary."""
    return forward_kl(logits, predictions(reference))


def kl_from_policy(logits: jax.Array, reference: jax.Array | None, targets: jax.Array) -> jax.Array:
    """KL(policy || reference) of every position, over the whole vocabulary."""
    return reverse_kl(logits, predictions(reference))


def log_collision(logits: jax.Array, reference: jax.Array | None, targets: jax.Array) -> jax.Array:
    """`losses.preference.tokens.log_collision` of every position; no gradient."""
    return tokens.log_collision(jax.lax.stop_gradient(logits))


# --- regularisers ---


def chosen_nll(scale: float) -> PairTerm:
    """scale * -log p of the chosen completions' tokens: one mean over the tokens of the batch.

    CPO's regulariser (Xu et al. 2024, arXiv 2401.08417), with scale 1 there.
    """

    def term(seen: Seen) -> Term:
        log_probs, _ = sides(seen.log_probs)
        return weighted_sum(-log_probs, _chosen_weights(seen, "weights"), scale)

    return PairTerm(term)


def chosen_nll_by_sequence(scale: float) -> PairTerm:
    """scale * -log p / L of the chosen completions: a mean over each one's tokens, then over pairs.

    What the code of RPO adds in its averaged form (Liu et al. 2024, arXiv 2405.16436).
    """

    def term(seen: Seen) -> Term:
        return weighted_sum(sft(per_token(seen.pairs)), seen.weights, scale)

    return PairTerm(term)


def chosen_text_nll(scale: float, text: str = "text_weights") -> PairTerm:
    """scale * -log p of the chosen's prompt and completion: one mean over tokens of the batch.

    Both sides of the batch bring `text` f32 [P, T], which weighs prompts too and no padding. ORPO's
    NLL as released (Hong et al. 2024, arXiv 2403.07691).
    """

    def term(seen: Seen) -> Term:
        if text not in seen.batch:
            raise ValueError(f"batch: got {', '.join(sorted(seen.batch))}, takes {text!r} besides")
        log_probs, _ = sides(seen.log_probs)
        return weighted_sum(-log_probs, _chosen_weights(seen, text), scale)

    return PairTerm(term)


def kl_to_reference(scale: float = 1.0) -> PairTerm:
    """scale * KL(policy || reference) of a token, exact: a mean over both completions' tokens.

    A penalty among the losses of `prefer`, a diagnostic among its metrics.
    """

    def term(seen: Seen) -> Term:
        weights = (seen.batch["weights"] != 0) * jnp.repeat(seen.weights, 2)[:, None]
        return weighted_sum(seen.tokens[kl_from_policy], weights, scale)

    return PairTerm(term, (kl_from_policy,))


def _chosen_weights(seen: Seen, name: str) -> jax.Array:
    """f32 [P, T]: 1 on the chosen's weighed tokens, of pairs that are no padding."""
    weights, _ = sides(seen.batch[name])
    return (weights != 0) * seen.weights[:, None]


# --- losses that read more of the batch than Pairs holds ---


def of_sums(loss: Callable[..., jax.Array], *statistics: Statistic) -> PairTerm:
    """The mean over pairs of loss(pairs, *sums).

    sums: of each statistic those of chosen and of rejected, f32 [P], over the completion's tokens.
    """

    def term(seen: Seen) -> Term:
        found = (completion_sums(seen, s) for s in statistics)
        sums = [side for both in found for side in both]
        return weighted_sum(loss(seen.pairs, *sums), seen.weights)

    return PairTerm(term, statistics)


def completion_sums(seen: Seen, statistic: Statistic) -> tuple[jax.Array, jax.Array]:
    """A statistic's sums over the tokens of chosen and of rejected completions, f32 [P] each."""
    return sides(sequence_log_probs(seen.tokens[statistic], seen.batch["weights"]))


def length_desensitised(loss: Callable[[Pairs, Pairs], jax.Array]) -> PairTerm:
    """The mean over pairs of loss(pairs, shared), as `losses.preference.tokens.ld_dpo` takes them.

    shared: the log-probabilities of the first min(L_c, L_r) tokens of both completions.
    """

    def term(seen: Seen) -> Term:
        mask = seen.batch["weights"] != 0
        shorter = jnp.minimum(*lengths(seen.pairs))
        # The n-th token of a completion is where the running count is n.
        inside = mask * (mask.cumsum(-1) <= jnp.repeat(shorter, 2)[:, None]).astype(jnp.float32)
        policy, reference = (
            sides(sequence_log_probs(x, inside))
            for x in (seen.log_probs, seen.tokens[reference_log_prob])
        )
        return weighted_sum(loss(seen.pairs, Pairs(*policy, *reference)), seen.weights)

    return PairTerm(term, (reference_log_prob,))


def own_first(loss: PairLoss) -> PairTerm:
    """WPO: a pair counts as much as its completions are the policy's own.

    The mean over pairs of loss(pairs) times the `wpo_weight` of chosen and of rejected.
    """

    def term(seen: Seen) -> Term:
        found = tokens.wpo_weight(seen.log_probs, seen.tokens[log_collision], seen.batch["weights"])
        chosen, rejected = sides(found)
        return weighted_sum(chosen * rejected * loss(seen.pairs), seen.weights)

    return PairTerm(term, (log_collision,))


def over_the_batch(loss: Callable[[Pairs, jax.Array], jax.Array]) -> PairTerm:
    """The mean over pairs of a loss that couples them: loss(pairs, weights), as `transport.aot`.

    The objective is then `whole_batch`.
    """
    return PairTerm(
        lambda seen: weighted_sum(loss(seen.pairs, seen.weights), seen.weights), whole_batch=True
    )
