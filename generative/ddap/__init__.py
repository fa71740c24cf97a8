"""DDAP: photos protected against personalised diffusion in two domains (Yang et al., IJCB 2024, arXiv 2407.20141)."""
