"""Models come and go as Hugging Face directories, and are asked to continue a text.

from superpose.share import export, generate, import_model

facts = export("runs/one", "my-model", license_id="apache-2.0")
print(generate("my-model", "def read(", max_new_tokens=40))
recipe = import_model("my-model", "on.toml")
"""

from typing import TYPE_CHECKING

from superpose.lazy import names

if TYPE_CHECKING:
    from superpose.models.sampling import sample
    from superpose.share.exporting import export
    from superpose.share.facts import Facts
    from superpose.share.importing import import_model
    from superpose.share.sampling import generate

__all__ = ["Facts", "export", "generate", "import_model", "sample"]

_HOMES = {"Facts": "facts", "export": "exporting", "import_model": "importing"}
__getattr__ = names(__name__, {**_HOMES, "generate": "sampling", "sample": ".models.sampling"})
