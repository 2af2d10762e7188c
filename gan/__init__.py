"""Networks, objective, one training step, latent search and scores, on torch and numpy alone."""
