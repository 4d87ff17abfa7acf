"""`outrider-link`: a TCP relay that behaves like a given network link."""
