"""The parity kit: shows that two implementations of a balancer give the same bits, and where they do not."""

from loss_balancers.parity.bits import assert_same_bits, ulp_distance
from loss_balancers.parity.lanes import Lane, find_lanes
from loss_balancers.parity.run import Cell, Difference, run_lane

__all__ = ["Cell", "Difference", "Lane", "assert_same_bits", "find_lanes", "run_lane", "ulp_distance"]
