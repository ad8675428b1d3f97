"""Next-token evaluation: models side by side on held-out text and small tasks.

from superpose.evaluate import evaluate, summary

evaluation = evaluate(["runs/ordinary", "runs/tst"], tasks=["all"])
print(evaluation.texts[0].models[1].bits_per_byte.value)
print(summary(evaluation))
"""

from superpose.evaluate.evaluation import Evaluation
from superpose.evaluate.tables import summary
from superpose.evaluate.workflow import evaluate

__all__ = ["Evaluation", "evaluate", "summary"]
