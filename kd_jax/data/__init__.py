"""Data: TFDS builders and jsonl files, collation in pure numpy, and an order that no host changes.

    records   prepare.load(Tofu)["full"]; jsonl.read_prompt_answers("my.jsonl")
    examples  templates.question_answer(...) -> templates.example(tokenizer, ...)
    arrays    collate.collate_qa(examples, length=128, ...)
    source    sources.array_batches(arrays, seed=0, name="full", batch_size=16)

A source is a plain function `batches(step, rows) -> {name: array}` of the training step and of the
rows of the global batch that this process makes. It keeps no position: resuming needs the step
alone. Nothing here imports JAX, except the prefetching of `sources.prefetch`, through grain.
"""
