"""Commands that run no stage themselves: each module adds its own to the command line."""
