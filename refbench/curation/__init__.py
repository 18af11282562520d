"""Curation: what is wrong with a split, what its masks could be, what is decided, and the ledger of it all."""
