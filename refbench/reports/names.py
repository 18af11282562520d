"""The names of systems in tables and on pages."""

from __future__ import annotations

from refbench.records import RunInfo

MODES = {"forced": "answer forced", "generate": "answer generated"}


def system_name(info: RunInfo) -> str:
    """The name of the adapter and what distinguishes its runs: options, mode and limit."""
    options = ",".join(f"{k}={v}" for k, v in sorted(info.adapter_options.items()))
    name = f"{info.adapter} ({options})" if options else info.adapter
    # A model with a forced answer text and a model that generates the text are different systems.
    if info.mode:
        name += f" [{MODES.get(info.mode, info.mode)}]"
    return name if info.limit is None else f"{name} [first {info.limit}]"
