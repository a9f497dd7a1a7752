"""Rollout: who gets which bundle, how far a release has climbed, and whether it may go on.

Pure: values in, values out. Nothing here reads a clock, a database or a random number; the server and the fleet
simulator hand those in, so that what is simulated is what runs.
"""

from cloud.rollout.course import Course, Judgement, Policy, planned
from cloud.rollout.evidence import Arm, Evidence, Reports, Watched, summed
from cloud.rollout.gates import Finding, Gate, judge
from cloud.rollout.ladder import LADDER, Rollout, Rung
from cloud.rollout.policy import Decision, Facts, Rule, decide

__all__ = [
    "LADDER",
    "Arm",
    "Course",
    "Decision",
    "Evidence",
    "Facts",
    "Finding",
    "Gate",
    "Judgement",
    "Policy",
    "Reports",
    "Rollout",
    "Rule",
    "Rung",
    "Watched",
    "decide",
    "judge",
    "planned",
    "summed",
]
