"""Ray for the rest of the project: role specs, placement groups, sessions, health. Knows nothing of what they compute."""
