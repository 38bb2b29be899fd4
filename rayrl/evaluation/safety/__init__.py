"""Safety requests: what an answer does with them by its form, and what a person must read."""
