"""Parts of `distil` for classifiers and features, by idea; all of them on taps of any model.

distil(student, teacher, {"ce": labels(), "at": attention(("block_5", "block_8"), scale=1000.0)})

Maps are [B, H, W, C], means are over examples by batch["weights"] [B]. What a part trains (a
projector, an embedding) is an aux parameter and leaves with the rest: an export of params["model"]
has nothing of it. Parts that compare examples with one another see the whole batch and refuse
microbatches; examples of weight 0 are no part of any comparison, and pairs weigh the product of
their weights.
"""
