"""Episodes of several turns: what a model says is answered by an environment, and learned whole."""
