"""How Outrider is run elsewhere: containers, job files, units, manifests, and their tests."""
