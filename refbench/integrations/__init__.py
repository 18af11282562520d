"""The metrics of refbench in the interfaces of other libraries. Each module imports the library of its name."""
