"""Generated stubs of the contract in proto/; see `make proto`."""
