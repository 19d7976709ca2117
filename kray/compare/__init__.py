"""Methods compared on the same policy, prompts, budget and seeds: the study, carrying it out, and its report."""
