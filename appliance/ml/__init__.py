"""Base models, data, the training loop, metrics and the engine: the home of torch."""
