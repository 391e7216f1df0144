"""Unlearning objectives. Each works on one text batch; the combinators place them:

add({"forget": on("forget", negative_preference(model, reference, beta=0.1)),
     "retain": on("retain", supervise(model, {"nll": next_token_nll}))})        # NPO+RT
"""
