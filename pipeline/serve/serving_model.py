"""The code MLflow stores with a version and runs to load it (models from code): no pickle is involved."""

from mlflow.models import set_model

from pipeline.serve import bytecode
from pipeline.serve.serving import PrefixModel

bytecode.forget(__spec__)
set_model(PrefixModel())
