"""Hypothesis strategies of the whole suite, a section for each area."""

import random

from hypothesis import strategies as st

from nbprocs.policy import RestartPolicy, RetryPolicy

# --- policies -------------------------------------------------------------------------------------------------------------

seconds = st.floats(min_value=0, max_value=1000, allow_nan=False)
jitters = st.sampled_from([True, False, "full", "proportional"])
sources = st.integers(min_value=0).map(random.Random)


@st.composite
def retry_policies(draw, **fixed):
    fields = {
        "max_retries": draw(st.integers(min_value=0, max_value=20)),
        "initial_delay": draw(seconds),
        "max_delay": draw(seconds),
        "backoff_multiplier": draw(st.floats(min_value=1, max_value=1e6)),
        "jitter": draw(jitters),
        "rng": draw(sources),
    }
    return RetryPolicy(**{**fields, **fixed})


@st.composite
def restart_policies(draw, **fixed):
    fields = {
        "on": draw(st.sampled_from(["failure", "always"])),
        "max_restarts": draw(st.integers(min_value=0, max_value=6)),
        "window": draw(st.floats(min_value=0.5, max_value=100)),
        "initial_delay": draw(st.floats(min_value=0, max_value=20)),
        "max_delay": draw(st.floats(min_value=0, max_value=20)),
        "backoff_multiplier": draw(st.floats(min_value=1, max_value=10)),
        "jitter": draw(jitters),
        "healthy_after": draw(st.floats(min_value=0.5, max_value=30)),
        "rng": draw(sources),
    }
    return RestartPolicy(**{**fields, **fixed})
