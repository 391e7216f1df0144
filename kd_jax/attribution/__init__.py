"""Attribution: which weights matter for a set of data, from their values and gradients.

A pass over the data sums gradients (`accumulate`), scores are made of them (`scores`), and the
weights with the largest are chosen (`masks`). What trains only those is
`kd_jax.gradients.masked`:

    forget, retain = ...                              # gradient sums, trees like params
    mask = top_mask(wagle(params, forget, retain, gamma=1e-6), ratio=0.8)
    step = make_train_step(objective, optimizer, gradient=masked("mask"))  # frozen["mask"]
"""
