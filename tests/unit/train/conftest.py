"""Makes the fixtures of learner_fixtures.py known to this folder's tests."""

from learner_fixtures import (  # noqa: F401
    make,
    models,
    probe,
    ragged,
    run_ranks,
    some_conversations,
    some_groups,
    train,
)
