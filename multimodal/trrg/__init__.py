"""TRRG: truthful radiology reports, with disease clues in a language model (Wang et al. 2024, arXiv 2408.12141)."""
