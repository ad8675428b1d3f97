"""Before a run: what TST would bring, what it would cost, and whether to do it.

request_for (numbers) or request_of (a recipe) -> Request -> make_plan -> Plan -> summary, plan.json
"""

from superpose.plan.advisor import Plan, Reason, make_plan, summary
from superpose.plan.evidence import Point, Setting, points_of
from superpose.plan.fit import request_for, request_of
from superpose.plan.prediction import Prediction
from superpose.plan.request import Request, parse_hardware

__all__ = ["Plan", "Point", "Prediction", "Reason", "Request", "Setting", "make_plan", "parse_hardware", "points_of",
           "request_for", "request_of", "summary"]  # fmt: skip
