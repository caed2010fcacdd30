"""Evaluation: metrics, bootstrap intervals, the one result format, reports and films."""
