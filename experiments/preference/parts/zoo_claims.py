"""What papers claim of the losses of the zoo; written before the run at `laptop`."""

from collections.abc import Callable

from kd_jax.launch.claims import Claim, Effect, Results, above, below


def _effect(name: str) -> Callable[[Results], Effect | None]:
    def read(results: Results) -> Effect | None:
        found = results.values["effects"].get(name)
        return None if found is None else Effect(*found)

    return read


CLAIMS = (
    Claim(
        "Every loss of the zoo ends above its reference: the true win rate of the worst, at the "
        "strength chosen on other seeds, is above 1/2.",
        "each loss's paper",
        "all report win rates above 50 % against the SFT model",
        _effect("worst"),
        above(0.5),
    ),
    Claim(
        "Under DPO the chosen completions become less likely (change of their mean log-probability "
        "in nats).",
        "arXiv 2402.13228, 2405.16436, 2410.08847",
        "the chosen log-probability falls during DPO",
        _effect("dpo_chosen"),
        below(0.0),
    ),
    Claim(
        "With a likelihood term they do not: RPO, CPO and ORPO leave the chosen likelier than the "
        "reference did (least change of the three, in nats).",
        "arXiv 2405.16436, 2401.08417, 2403.07691",
        "the SFT term keeps the chosen log-probability from collapsing",
        _effect("likelihood_chosen"),
        above(0.0),
        "It is RPO, whose likelihood has the weight beta, 0.03 where its win rate is highest: the "
        "chosen stay where they were. CPO and ORPO leave them likelier by half a nat.",
    ),
    Claim(
        "So does DPO-positive (change in nats).",
        "arXiv 2402.13228",
        "the penalty keeps the chosen log-probability at its reference or above",
        _effect("dpop_chosen"),
        above(0.0),
    ),
    Claim(
        "Without a reference the policy drifts further: SimPO ends at a larger KL than DPO "
        "(difference in nats).",
        "arXiv 2405.14734, section 4",
        "SimPO has no explicit constraint on the KL, and its KL is larger",
        _effect("simpo_kl"),
        above(0.0),
        "Each at the strength of its highest win rate. DPO's reference does not hold it either "
        "there: both drift by four nats in 200 steps.",
    ),
    Claim(
        "SimPO's win rate is above DPO's (difference).",
        "arXiv 2405.14734, table 4 (number UNVERIFIED)",
        "up to 6.4 points on AlpacaEval 2",
        _effect("simpo_wins"),
        above(0.0),
        "Completions have at most four tokens here: there is little length to normalise.",
    ),
    Claim(
        "KTO, which sees no pairs, wins at least as often as DPO (difference above -0.02).",
        "arXiv 2402.01306",
        "matches or exceeds preference-based methods",
        _effect("kto_wins"),
        above(-0.02),
        "Completions of other prompts lose likelihood, so that KTO's baseline is 0 throughout and "
        "KTO is APO-zero: sigmoids saturate, and it stops at half of DPO's KL.",
    ),
    Claim(
        "IPO of sums keeps nearer to the reference than DPO at the same strength, 0.3 (KL of DPO "
        "less that of IPO, in nats).",
        "arXiv 2310.12036, section 5",
        "DPO's regularisation is lost where preferences are nearly certain, IPO's is not",
        _effect("ipo_kl"),
        above(0.0),
    ),
    Claim(
        "DPO over-optimises: its true win rate ends below where it was at the step that is best on "
        "other seeds (difference).",
        "arXiv 2406.02900",
        "win rates rise and then fall as the KL grows",
        _effect("dpo_fall"),
        above(0.0),
        "Worlds differ in when: each falls by 0.035 from its own best, at different steps.",
    ),
    Claim(
        "Formulas tell what becomes of the chosen: CE with unlikelihood and ORPO's formula leave "
        "them likelier than CPO's does (least difference, in nats).",
        "arXiv 2412.17696",
        "CPO allows both completions to fall",
        _effect("formula_chosen"),
        above(0.0),
        "CE with unlikelihood does, ORPO's formula does not: alone, without the likelihood that "
        "ORPO adds, it lets both fall as CPO's does, and at a weaker strength further.",
    ),
    Claim(
        "Constrained CPO wins at least as often as the formulas of CPO and ORPO (least "
        "difference).",
        "arXiv 2412.17696",
        "competitive with or better than CPO and ORPO",
        _effect("ccpo_wins"),
        above(-0.01),
        "With the likelihood terms that are usual with CPO and ORPO both win less often than "
        "constrained CPO alone; without, more often.",
    ),
)
