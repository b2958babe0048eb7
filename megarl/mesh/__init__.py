"""Universe, pools and role meshes, their process groups, and the exchange of rows between roles."""
