"""What both processes are made of: types, errors, configuration, the stop rule, wire, engine."""

PROTOCOL_VERSION = "1.0"
