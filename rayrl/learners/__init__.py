"""What a rank of a trained role does with its share of a rollout batch, apart from Ray."""
