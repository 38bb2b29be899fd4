"""The one way anything talks to an outside model: client, cache, budget."""
