"""The metrics of refbench in the interfaces of other libraries. Only `torchmetrics` needs the library of its name."""
