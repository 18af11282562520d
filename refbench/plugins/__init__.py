"""Plug-ins: where builders, adapters, protocols, checks and refiners are found, and how their options are read."""
