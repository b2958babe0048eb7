"""The roles of a run: actor, critic, reference, rollout; each a mesh, an engine and a few verbs."""
