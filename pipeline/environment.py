"""The environment variables that keep every tool quiet, offline and safe. Set by the command line and the tests."""

from __future__ import annotations

from collections.abc import Mapping

SWITCHES: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Nothing executable is loaded, and nothing is cut short without a word.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    # Tokenizers' threads and fork() warn at every subprocess otherwise.
    "TOKENIZERS_PARALLELISM": "true",
    "GIT_TERMINAL_PROMPT": "0",
    # Threads that wait for each other sleep instead of spinning: two trainings at once on one machine are otherwise
    # many times slower than one after the other.
    "OMP_WAIT_POLICY": "passive",
}


def quiet_environment(*, offline: bool = True) -> dict[str, str]:
    """The switches as a mapping to put into `os.environ` or a subprocess's environment.

    Args:
        offline: also forbid the model and data hub, and a lineage server (tests and the demo).
    """
    nobody = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENLINEAGE_DISABLED": "true"}
    return {**SWITCHES, **(nobody if offline else {})}
