"""Several processes as one run: which there are, how they meet and what they agree on."""
