"""What libraries do behind the user's back, switched off by environment variables before any of them is imported.

A value that the user has set stays. The list is the project's: counters at import, usage statistics, update checks, and
downloads on first use, of the libraries that an extra may bring.
"""

from __future__ import annotations

import os

SWITCHES = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_MODE": "offline",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAGAS_DO_NOT_TRACK": "true",
    "ANONYMIZED_TELEMETRY": "False",
}

_ours: set[str] = set()


def switch_telemetry_off() -> None:
    """Sets every switch that the user has not set."""
    for name, value in SWITCHES.items():
        if name not in os.environ:
            os.environ[name] = value
            _ours.add(name)


def allow_hub() -> None:
    """Lets the model hub be reached, because the user asked for a download; one that the user forbade stays forbidden."""
    if "HF_HUB_OFFLINE" in _ours:
        del os.environ["HF_HUB_OFFLINE"]
        _ours.discard("HF_HUB_OFFLINE")
