"""One module a command: Ray Train or Ray Data around the parts below. Each has `main(path of the resolved YAML)`."""
