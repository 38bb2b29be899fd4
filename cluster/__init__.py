"""Ray for the rest of the project: role specs, placement, sessions, health. Knows nothing of what roles compute."""
