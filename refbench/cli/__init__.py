"""The command line: one module per command, without any logic of its own."""
