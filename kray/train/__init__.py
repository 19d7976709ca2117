"""Training: advantages, loss, micro-batches, the FSDP2 learner and its checkpoints.

Importing this package loads nothing; `kray.train.learner_group` is the only module here that imports Ray.
"""
