"""What this process may use of its machine, and what it has used."""
