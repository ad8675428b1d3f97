"""TorchTitan is put on the CPU before any test imports it; it has an environment of its own, see the Makefile."""

import warnings
from importlib.util import find_spec

if find_spec("torchtitan"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.integrations.torchtitan import runs  # noqa: F401
