"""The reshard: carries out a plan between live parameters, over the universe's group."""
