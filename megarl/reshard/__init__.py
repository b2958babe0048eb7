"""The reshard: carries out a plan between live parameters, over a group of ranks."""
