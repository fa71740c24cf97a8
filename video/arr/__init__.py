"""ARR: action anticipation by recognition of the past and reasoning about what comes next (Liu et al., TOMM 2024)."""
