"""Assess artifacts: compare, evaluate, benchmark, debug, inspect, gate and report."""
