"""The operators' page: pool, releases, matching, the fleet's cost, and what personalization brought."""

from cloud.dashboard.look import Look, look
from cloud.dashboard.render import POLICY, page

__all__ = ["POLICY", "Look", "look", "page"]
