"""Make the database that `PREFIXLINE_MLFLOW_URI` names, or its tables: python -m pipeline.tracking ARTIFACT_ROOT.

By environment, since a command line is for all to read and an address may hold a password.
"""

from __future__ import annotations

import os
import sys

from pipeline.errors import PrefixlineError
from pipeline.tracking.connection import MLFLOW_URI, connect

if __name__ == "__main__":
    try:
        connect(os.environ[MLFLOW_URI], artifact_root=sys.argv[1])
    except PrefixlineError as error:
        sys.exit(str(error))
